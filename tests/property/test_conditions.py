"""Laws of conditions on devices: of their text, their negation, their order and their reasons."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from broker.wire.messages import DeviceInfo
from fl_server.selection.conditions import Condition, parse
from fl_server.selection.targets import RunTarget
from fl_server.selection.traits import DeviceTraits
from runtime.errors import ConfigError

WORDS = st.sampled_from(["pi", "pi4", "gpu", "Attic", "a*", "*", "3", "-2.5", "4GB", "0.3.1"])
ATTRIBUTES = ["id", "kind", "profile", "engine", "group", "cpus", "ram", "accelerators"]
OTHERS = ["lab", "room", "label.profile", "version.torch", "version.rengo"]
NAMES = st.sampled_from([*ATTRIBUTES, *OTHERS])
OPERATORS = st.sampled_from(["=", "!=", "<", "<=", ">", ">=", "=="])
WRITTEN = st.one_of(
    NAMES,
    NAMES.map(lambda name: f"!{name}"),
    st.builds(
        lambda name, op, values: f"{name}{op}{','.join(values)}",
        NAMES,
        OPERATORS,
        st.lists(WORDS, min_size=1, max_size=3),
    ),
)
LABELS = st.dictionaries(st.sampled_from(["lab", "room", "profile"]), WORDS, max_size=2)
INFOS = st.builds(
    DeviceInfo,
    role=st.just("trainer"),
    profile=WORDS,
    engine=st.sampled_from(["numpy", "torch"]),
    cpus=st.integers(1, 64),
    ram_bytes=st.integers(0, 1 << 40),
    accelerators=st.lists(WORDS, max_size=2),
    versions=st.dictionaries(st.sampled_from(["torch", "rengo"]), WORDS, max_size=2),
    tasks=st.just(["digits"]),
    labels=LABELS,
)
DEVICES = st.builds(
    DeviceTraits,
    id=st.sampled_from(["pi", "gpu"]),
    info=st.none() | INFOS,
    group=st.sampled_from(["", "lab"]),
    labels=LABELS,
)
KNOWN = DEVICES.filter(lambda each: each.info is not None)
NEGATED = {"=": "!=", "<": ">=", ">": "<=", "has": "lacks"}


def read(text: str) -> Condition | None:
    try:
        return parse(text)
    except ConfigError:
        return None


CONDITIONS = WRITTEN.map(read).filter(lambda each: each is not None)


@given(st.text(max_size=40) | WRITTEN)
def test_any_text_is_a_condition_or_a_clear_line(text: str) -> None:
    complaint = ""
    try:
        condition = parse(text)
    except ConfigError as error:
        complaint = str(error)
    else:
        assert parse(str(condition)) == condition
    assert len(complaint) < 400
    assert "\n" not in complaint


@given(CONDITIONS, DEVICES)
def test_every_device_fits_or_has_one_short_reason(
    condition: Condition, device: DeviceTraits
) -> None:
    reason = condition.misfit(device)
    assert len(reason) < 600
    assert "\n" not in reason


@given(CONDITIONS.filter(lambda each: each.operator in NEGATED), KNOWN)
def test_of_a_condition_and_its_opposite_one_holds(
    condition: Condition, device: DeviceTraits
) -> None:
    opposite = replace(condition, operator=NEGATED[condition.operator])
    fits = not condition.misfit(device)
    has_none = condition.kind in {"label", "version"} and condition.operator in {"<", ">"}
    if has_none and not fits and "no" in condition.misfit(device).split():
        assert opposite.misfit(device), "what is not there is neither more nor less"
    else:
        assert fits == bool(opposite.misfit(device))


@given(st.integers(0, 1 << 40), st.integers(0, 1 << 40), st.integers(1, 64))
def test_more_memory_fits_wherever_less_does(ram: int, more: int, gigabytes: int) -> None:
    condition = parse(f"ram>={gigabytes}GB")

    def fits(ram_bytes: int) -> bool:
        info = DeviceInfo(
            role="trainer",
            profile="cpu",
            engine="numpy",
            cpus=1,
            ram_bytes=ram_bytes,
            accelerators=[],
            versions={},
            tasks=[],
        )
        return not condition.misfit(DeviceTraits("d", info))

    assert fits(ram) <= fits(ram + more)
    assert fits(ram) == (ram >= 0.9 * gigabytes * 1e9)


@given(st.lists(CONDITIONS, max_size=3), DEVICES)
def test_a_target_holds_where_all_its_conditions_do(
    conditions: list[Condition], device: DeviceTraits
) -> None:
    target = RunTarget((), tuple(conditions))
    assert (target.misfit(device) is None) == all(not each.misfit(device) for each in conditions)


@given(CONDITIONS, INFOS)
def test_an_operators_label_comes_before_the_devices_own(
    condition: Condition, info: DeviceInfo
) -> None:
    as_own = DeviceTraits("d", info)
    as_given = DeviceTraits("d", info.model_copy(update={"labels": {}}), labels=info.labels)
    assert condition.misfit(as_own) == condition.misfit(as_given)
