"""A task as a signed bundle, from its file to two devices: one trusts the key, one does not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from rengo.operator.runs import wait_for_devices
from rengo.site.device_process import DeviceSpec, device_process
from rengo.site.site import Site
from runtime.processes.child import Child
from runtime.security.signing import SecretKey
from tests.integration.commands import rengo

EXAMPLE = Path(__file__).parents[2] / "examples" / "my_task.py"
DONE, USAGE = 0, 2
STRANGER = SecretKey("c3" * 32)
# the example's task, in two files, with what only its bundle's folder has
TASK = """\
from pathlib import Path

from mine.parts import width
from my_task import MyTask


class Bundled(MyTask):
    name = "bundled"

    def data(self, device):
        assert (Path(__file__).parent / "notes.txt").read_text() == "hello"
        assert width == 3
        return super().data(device)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an author has: a task, a module, a data file and a key."""
    made = tmp_path_factory.mktemp("author")
    shutil.copy(EXAMPLE, made / "my_task.py")
    (made / "bundled.py").write_text(TASK)
    (made / "mine").mkdir()
    (made / "mine" / "__init__.py").write_text("")
    (made / "mine" / "parts.py").write_text("width = 3\n")
    (made / "notes.txt").write_text("hello")
    assert rengo("task", "keygen", made / "key").code == DONE
    return made


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Path:
    path = folder / "bundled.rtask"
    packed = rengo(
        *("task", "pack", f"{folder / 'bundled.py'}:Bundled", "-o", path),
        *("--data", folder / "notes.txt", "--requires", "numpy>=1.24"),
    )
    assert packed.code == DONE, packed
    return path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[Site]:
    """A site with two devices that have other tasks: device-1 trusts the author's key."""
    home = tmp_path_factory.mktemp("home")
    author = (folder / "key.pub").read_text().strip()
    with Site(home, devices=2) as site:
        children: list[Child] = []
        try:
            for index, trusted in enumerate((author, STRANGER.public.text)):
                name = f"device-{index + 1}"
                config = home / f"{name}.toml"
                config.write_text(f'[bundles]\ntrust = ["{trusted}"]\n')
                spec = DeviceSpec(name, engine="numpy", index=index, count=2)
                identity = site.folder.identity_path(name)
                child = device_process(
                    spec, identity, home / "agents" / name, "digits", home / f"{name}.log"
                )
                child._argv += ["--config", str(config)]
                child.start()
                children.append(child)
            with site.connect() as client:
                wait_for_devices(client, ("device-1", "device-2"), 60.0)
            yield site
        finally:
            for child in children:
                child.stop()


def test_a_bundle_is_packed_signed_pushed_and_trained_by_whoever_trusts_its_key(
    site: Site, bundle: Path, folder: Path, tmp_path: Path
) -> None:
    home = site.folder.root
    refused = rengo("task", "push", bundle, home=home)
    assert refused.code == USAGE
    assert "nobody has signed it" in refused.line
    assert rengo("task", "sign", bundle, "--key", folder / "key", "--expires", "30").code == DONE
    assert rengo("task", "verify", bundle, "--trust", folder / "key.pub").code == DONE
    pushed = rengo("task", "push", bundle, "--json", "-", home=home)
    assert pushed.code == DONE, pushed
    name = json.loads(pushed.out)["name"]
    listed = json.loads(rengo("task", "ls", "--json", "-", home=home).out)["bundles"]
    assert [each["name"] for each in listed] == [name]

    spec = f"{folder / 'bundled.py'}:Bundled"
    options = ["--rounds", "2", "--set", "cohort.quorum=1", "--output", tmp_path, "--json", "-"]
    ran = rengo("run", spec, "--bundle", "bundled", *options, home=home, patience_s=120.0)
    assert ran.code == DONE, ran
    run = json.loads(ran.out)
    assert run["rounds_completed"] == 2
    shown = json.loads(rengo("runs", "show", run["run_id"], "--json", "-", home=home).out)
    for row in shown["history"]:
        assert row["included"] == ["device-1"]
        assert "does not trust the key" in row["refused"]["device-2"]
    unpacked = list((home / "agents" / "device-1" / "bundles").glob("*/task/bundled.py"))
    assert len(unpacked) == 1
    assert not list((home / "agents" / "device-2" / "bundles").glob("*/task"))
    log = home / "agents" / "device-1" / "training.log"
    assert "Traceback" not in log.read_text()

    # version 0 by the bundle's own code: only for whoever says that the key is trusted
    own = ("run", "--bundle", name, *options)
    told = rengo(*own, "--trust", STRANGER.public.text, home=home)
    assert told.code == USAGE
    assert "which you do not trust" in told.err
    key = folder / "key.pub"
    assert rengo(*own, "--trust", key, home=home, patience_s=120.0).code == DONE


def push_once(home: Path, bundle: Path, folder: Path) -> None:
    if not rengo("task", "ls", home=home).out.startswith("bundle "):
        assert rengo("task", "sign", bundle, "--key", folder / "key").code == DONE
        assert rengo("task", "push", bundle, home=home).code == DONE


def test_a_canary_goes_to_whoever_takes_the_bundle(
    site: Site, bundle: Path, folder: Path, tmp_path: Path
) -> None:
    home = site.folder.root
    push_once(home, bundle, folder)
    spec = f"{folder / 'bundled.py'}:Bundled"
    options = ["--rounds", "1", "--set", "cohort.quorum=1", "--output", tmp_path, "--json", "-"]
    versions = []
    for _ in range(2):
        ran = rengo("run", spec, "--bundle", "bundled", *options, home=home, patience_s=120.0)
        assert ran.code == DONE, ran
        versions.append(f"{json.loads(ran.out)['run_id']}:1")
    assert rengo("models", "promote", versions[0], home=home).code == DONE
    trial = ("--canary", "100%", "--max-drop", "1", "--deadline", "60s")
    told = rengo("models", "promote", versions[1], *trial, home=home, patience_s=120.0)
    # device-2 takes bundles as well, but not of this author
    assert told.code == DONE, told
    assert "1 of 2 have measured both" in told.out
    assert f"{versions[1]} is in production for task bundled" in told.out


def test_a_bundle_stays_while_a_run_needs_it(site: Site, bundle: Path, folder: Path) -> None:
    home = site.folder.root
    push_once(home, bundle, folder)
    spec = f"{folder / 'bundled.py'}:Bundled"
    whole = ("--set", "cohort.size=3", "--set", "cohort.quorum=3")
    told = rengo("run", spec, "--bundle", "bundled", *whole, home=home)
    assert told.code == DONE, told
    run_id = told.out.split()[1]
    shown = rengo("runs", "show", run_id, home=home).out
    assert "waiting for 3 devices that have task 'bundled' or take its bundle" in shown
    refused = rengo("task", "rm", "bundled", home=home)
    assert refused.code == USAGE
    assert f"run {run_id} needs it" in refused.line
    assert rengo("runs", "stop", run_id, home=home).code == DONE
    assert rengo("task", "rm", "bundled", home=home).code == DONE
    assert "no bundles yet" in rengo("task", "ls", home=home).out
    gone = rengo("run", spec, "--bundle", "bundled", home=home)
    assert (gone.code, "no bundle 'bundled'" in gone.line) == (USAGE, True)


def test_a_store_is_given_no_bundle_that_is_not_what_was_announced(site: Site) -> None:
    with site.connect() as client:
        before = client.call("bundles_ls")["bundles"]
        wanted = {"sha256": "0" * 64, "size_bytes": 10}
        place = client.call("bundles_prepare", wanted)
        path = site.folder.root / "wrong.rtask"
        path.write_bytes(b"x" * 10)
        client.transfers().upload(place["url"], path, headers=place["headers"])
        with pytest.raises(Exception, match="has another sha256"):
            client.call("bundles_keep", wanted)
        assert client.call("bundles_ls")["bundles"] == before
