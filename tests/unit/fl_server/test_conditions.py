"""Conditions on devices: what they say, what holds, and what a person is told of a wrong one."""

from __future__ import annotations

import pytest

from broker.wire.messages import DeviceInfo, TreeSummary
from fl_server.selection.conditions import parse
from fl_server.selection.targets import RunTarget
from fl_server.selection.traits import DeviceTraits
from runtime.errors import ConfigError

PI = DeviceInfo(
    role="trainer",
    profile="pi4",
    engine="numpy",
    cpus=4,
    ram_bytes=3_977_584_640,  # what Linux says on a board of 4 GB
    accelerators=[],
    versions={"rengo": "0.3.1", "numpy": "2.1.0rc1"},
    tasks=["digits"],
    labels={"room": "attic", "floor": "3"},
)
GPU = PI.model_copy(
    update={
        "profile": "gpu",
        "engine": "torch",
        "cpus": 16,
        "ram_bytes": 64 << 30,
        "accelerators": ["cuda:0 NVIDIA RTX A5000", "cuda:1 NVIDIA RTX A5000"],
        "versions": {"rengo": "0.4", "torch": "2.10.0+cpu"},
        "labels": {},
    }
)
DEVICES = {
    "pi": DeviceTraits("pi", PI, "lab"),
    "gpu": DeviceTraits("gpu", GPU, labels={"room": "cellar"}),
    "dom": DeviceTraits("dom", GPU.model_copy(update={"tree": TreeSummary(server="0" * 64)})),
    "new": DeviceTraits("new"),
}


@pytest.mark.parametrize(
    ("text", "fitting"),
    [
        ("id=pi,gpu", "pi gpu"),
        ("profile=pi4", "pi"),
        ("profile=PI*", "pi"),
        ("profile!=pi4", "gpu dom"),
        ("engine=torch,tf", "gpu dom"),
        ("kind=domain", "dom"),
        ("kind=device", "pi gpu"),
        ("group=lab", "pi"),
        ("group!=lab", "gpu dom new"),
        ("cpus>=4", "pi gpu dom"),
        ("cpu > 4", "gpu dom"),
        ("cpus=4,16", "pi gpu dom"),
        ("cpus!=4,8", "gpu dom"),
        ("ram>=4GB", "pi gpu dom"),
        ("ram=4GB", "pi"),
        ("ram<4GB", ""),
        ("ram < 4.5 gib", "pi"),
        ("memory>=32GiB", "gpu dom"),
        ("accelerators", "gpu dom"),
        ("!accelerators", "pi"),
        ("accelerators>=2", "gpu dom"),
        ("accelerators=*rtx*", "gpu dom"),
        ("accelerators!=*A5000", "pi"),
        ("version.rengo>=0.3.2", "gpu dom"),
        ("version.rengo=0.3", "pi"),
        ("version.rengo<=0.3", "pi"),
        ("version.torch>=2.4", "gpu dom"),
        ("version.torch!=2.10", "pi"),
        ("version.numpy=2.1.0", "pi"),
        ("room", "pi gpu"),
        ("!room", "dom"),
        ("room=attic", "pi"),
        ("room!=attic", "gpu dom"),
        ("label.room=attic, cellar", "pi gpu"),
        ("floor>=3", "pi"),
        ("floor>3", ""),
        ("room>3", ""),
    ],
)
def test_what_fits(text: str, fitting: str) -> None:
    condition = parse(text)
    found = [name for name, traits in DEVICES.items() if not condition.misfit(traits)]
    assert found == fitting.split()


@pytest.mark.parametrize(
    ("text", "device", "reason"),
    [
        ("profile=pi5", "pi", "profile is pi4, not pi5"),
        ("profile=pi3,pi5", "pi", "profile is pi4, not pi3 or pi5"),
        ("profile!=pi4", "pi", "profile is pi4"),
        ("ram>=8GB", "pi", "ram is 3.98 GB, not >= 8GB"),
        ("cpus=8", "pi", "cpus is 4, not 8"),
        ("accelerators>=1", "pi", "accelerators is 0, not >= 1"),
        ("accelerators=*h100*", "pi", "accelerators are none"),
        ("version.torch>=2", "pi", "has no torch"),
        ("version.rengo>=0.4", "pi", "version.rengo is 0.3.1, not >= 0.4"),
        ("lab=a", "pi", "has no label lab"),
        ("!room", "gpu", "has the label room"),
        ("room=attic", "gpu", "room is cellar, not attic"),
        ("room>3", "gpu", "room is cellar, no number"),
        ("profile=pi", "new", "has not said what it is"),
        ("lab!=a", "new", "has not said what it is"),
        ("group=lab", "gpu", "group is empty, not lab"),
    ],
)
def test_why_a_device_does_not_fit(text: str, device: str, reason: str) -> None:
    assert parse(text).misfit(DEVICES[device]) == reason


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "'' is no condition; write one as profile=pi"),
        ("ram=>4GB", "is no condition"),
        ("4=cpus", "is no condition"),
        ("a b=c", "is no condition"),
        ("x" * 300, "is no condition"),
        ("profle=pi", "there is no profle; did you mean profile? (A label is label.profle.)"),
        ("Ram>=4GB", "did you mean ram?"),
        ("versions.torch=2", "did you mean version.torch?"),
        ("profile", "compares profile with nothing; write profile=VALUE"),
        ("!cpus", "compares cpus with nothing"),
        ("!lab=a", "! stands before a label alone; write lab!=a"),
        ("profile>=pi", "profile has no order; use = or !="),
        ("profile=", "has an empty value"),
        ("profile=a,,b", "has an empty value"),
        ("cpus>=1,2", ">= takes one value"),
        ("cpus>=many", "'many' is no number"),
        ("floor>=high", "'high' is no number"),
        ("accelerators>x", "'x' is no number"),
        ("ram>=4", "4 has no unit, as 512MB or 4GiB"),
        ("ram>=4GiBB", "no unit GiBB, did you mean GiB?"),
        ("ram>=lots", "'lots' is no size, as 512MB or 4GiB"),
        ("version.torch>=two", "'two' is no version, as 2.4"),
    ],
)
def test_what_a_person_is_told_of_a_wrong_condition(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse(text)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_target_is_any_of_its_names_and_all_of_its_conditions() -> None:
    target = RunTarget.read(["gpu", "group:lab"], ["cpus>=8"])
    assert target.misfit(DEVICES["gpu"]) is None
    low, other = target.misfit(DEVICES["pi"]), target.misfit(DEVICES["dom"])
    assert low is not None
    assert (low.cause, low.reason) == ("not cpus>=8", "cpus is 4, not >= 8")
    assert other is not None
    assert other.cause == "not gpu, group:lab"
    assert other.reason == "is in no group, and not of the target"
    assert (target.device_names, target.group_names) == (["gpu"], ["lab"])


def test_no_target_is_everybody() -> None:
    target = RunTarget.read([], [])
    assert target.is_everybody
    assert not any(target.misfit(each) for each in DEVICES.values())


@pytest.mark.parametrize("name", ["", "group:", "Lab", "groups:lab", "a b", "group:a:b"])
def test_a_wrong_target_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match="is no target; name a device or a domain, or group:NAME"):
        RunTarget.read([name], [])
