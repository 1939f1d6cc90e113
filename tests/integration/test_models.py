"""``rengo models`` against a real site: what a run leaves, what an operator does with it."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rengo.operator.runs import wait_for_devices
from rengo.site.device_process import DeviceSpec
from rengo.site.site import Site
from storage.store.s3 import S3Store
from storage.versions.keys import RunKeys
from tests.integration.broker_fixtures import eventually
from tests.integration.commands import Told, rengo
from tests.integration.test_cli_runs import submitted
from tests.objects import beside_in

DONE, USAGE, UNREACHABLE = 0, 2, 4
KEPT = 60
DEVICES = ("device-1", "device-2", "device-3")


class CanaryContext:
    """A running site and its operator."""

    def __init__(self, folder: Path, output: Path) -> None:
        self.folder = folder
        self.output = output
        self.site = Site(folder)

    def start(self) -> None:
        self.site = Site(self.folder)
        self.site.__enter__()

    def stop(self) -> None:
        self.site.__exit__(None, None, None)

    def start_devices(self) -> None:
        specs = [
            DeviceSpec(name, engine="numpy", index=index, count=2)
            for index, name in enumerate(DEVICES[:2])
        ]
        evaluator = DeviceSpec(DEVICES[2], engine="numpy", role="evaluator")
        self.site.start_devices([*specs, evaluator], "digits")
        with self.site.connect() as client:
            wait_for_devices(client, DEVICES, 60.0)

    @property
    def store(self) -> S3Store:
        return S3Store(self.site.store.settings)

    def tell(self, *words: object) -> Told:
        return rengo(*words, home=self.folder)

    def ask(self, *words: object) -> dict[str, Any]:
        told = self.tell(*words, "--json", "-")
        assert told.code == DONE, told
        read: dict[str, Any] = json.loads(told.out)
        return read

    def run(self, *options: object) -> str:
        done = self.ask("run", "digits", "--output", self.output, *options)
        run_id: str = done["run_id"]
        keys = RunKeys("default", run_id)
        # the last sweep comes after the run's end
        eventually(lambda: self.swept(keys), 30)
        return run_id

    def swept(self, keys: RunKeys) -> bool:
        found = [keys.version_of(info.key) for info in self.store.list(keys.prefix)]
        return None not in found and keys.record(max(each for each in found if each)) in {
            info.key for info in self.store.list(keys.prefix)
        }

    def names(self, *options: object) -> list[str]:
        return [row["name"] for row in self.ask("models", "ls", *options)["models"]]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CanaryContext]:
    house = CanaryContext(tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("output"))
    house.start()
    try:
        house.start_devices()
        yield house
    finally:
        house.stop()


@pytest.fixture(scope="module")
def run(house: CanaryContext) -> str:
    """A run of four rounds that keeps the latest three and every fourth version."""
    return house.run("--rounds", "4", "--set", "models.keep_every=4")


def test_every_retained_commit_is_a_version_with_its_lineage(
    house: CanaryContext, run: str
) -> None:
    assert house.names("--run", run) == [f"{run}:{number}" for number in (4, 3, 2, 0)]
    assert beside_in(house.store, RunKeys("default", run), {0, 2, 3, 4}) == ""
    shown = house.ask("models", "show", run)
    manifest = shown["manifest"]
    report = house.ask("runs", "show", run)
    assert (manifest["version"], manifest["sha256"]) == (4, report["model_sha256"])
    assert manifest["cohort"] == ["device-1", "device-2"]
    before = house.ask("models", "show", f"{run}:3")
    assert manifest["num_examples"] == before["manifest"]["num_examples"] > 0
    assert manifest["parent"] == {"run_id": run, "version": 3, "sha256": before["sha256"]}
    assert shown["metrics"]["accuracy"] == pytest.approx(report["accuracy"])
    assert before["metrics"]["accuracy"] > 0
    assert house.ask("models", "show", f"{run}:0")["manifest"]["parent"] is None


def test_a_person_reads_it(house: CanaryContext, run: str) -> None:
    listed = house.tell("models", "ls", "--run", run).out.splitlines()
    assert listed[0].split() == ["version", "stage", "measured", "size", "task", "sha256", "tags"]
    assert listed[1].split()[:2] == [f"{run}:4", "-"]
    shown = house.tell("models", "show", run).out
    assert "round 4, attempt 1: 2 updates of " in shown
    assert "(device-1, device-2)" in shown
    assert f"parent    {run}:3 (sha256 " in shown


def test_production_is_promoted_rolled_back_and_kept(house: CanaryContext, run: str) -> None:
    assert house.tell("models", "rollback", "digits").line == (
        "task 'digits' has no version in production"
    )
    told = house.tell("models", "promote", f"{run}:2", "--reason", "the first")
    assert told.out == f"{run}:2 is in production for task digits.\n"
    house.ask("models", "promote", run)
    stages = {row["version"]: row["stage"] for row in house.ask("models", "ls")["models"]}
    assert (stages[2], stages[4]) == ("archived", "production")
    told = house.tell("models", "rm", run)
    assert (told.code, told.line.partition(":")[0]) == (USAGE, f"{run}")
    told = house.tell("models", "rollback", "--reason", "too slow")
    assert told.out == f"{run}:2 is in production for task digits.\n"
    withdrawn = house.ask("models", "show", f"{run}:4")["record"]
    assert (withdrawn["stage"], withdrawn["withdrawn"]) == ("archived", True)
    assert withdrawn["reason"] == "too slow"
    told = house.tell("models", "rollback")
    assert told.code == USAGE
    acts = [entry["act"] for entry in house.ask("audit", "--last", "5")["entries"]]
    assert "model promoted" in acts
    assert "model rolled back" in acts


def test_a_rollback_that_is_asked_for_again_goes_no_further_back(
    house: CanaryContext, run: str
) -> None:
    """An answer may be lost, also to a restart: the request comes again."""
    for number in (2, 3, 4):
        house.ask("models", "promote", f"{run}:{number}")
    asked = {"name": f"{run}:4", "reason": "too slow"}
    with house.site.connect() as client:
        answers = [client.call("models_rollback", asked) for _ in range(2)]
    assert [each["name"] for each in answers] == [f"{run}:3"] * 2
    assert house.ask("models", "show", "digits@production")["name"] == f"{run}:3"
    assert house.ask("models", "rollback", "digits")["name"] == f"{run}:2"


def test_names_that_mean_nothing_are_told(house: CanaryContext, run: str) -> None:
    for name in ("nothing", f"{run}:77", "other@production", "0123456789abcdef"):
        told = house.tell("models", "show", name)
        assert told.code == USAGE
        assert told.line
    sha256 = house.ask("models", "show", f"{run}:3")["sha256"]
    assert house.ask("models", "show", sha256[:10])["name"] == f"{run}:3"


def test_a_tag_keeps_a_version_of_a_run_that_goes_on(house: CanaryContext) -> None:
    told = house.tell("run", "digits", "--rounds", "100000", "--set", f"models.keep={KEPT}")
    run_id = submitted(told)
    keys = RunKeys("default", run_id)

    eventually(lambda: bool(house.names("--run", run_id)), 60)
    # far enough from the end of what is kept that it is still there when the command arrives
    house.ask("models", "tag", run_id, "kept")
    name = house.ask("models", "show", "kept")["name"]
    number = int(name.partition(":")[2])
    refused = house.tell("models", "rm", name)
    assert "its run goes on" in refused.line
    eventually(
        lambda: house.ask("runs", "show", run_id)["rounds_completed"] > number + KEPT + 2, 120
    )
    removed = house.ask("models", "gc")
    assert not any(key.startswith(keys.prefix) for key in removed["keys"])
    house.ask("runs", "stop", run_id)
    latest = house.ask("runs", "show", run_id)["rounds_completed"]
    wanted = {number, *range(latest - KEPT + 1, latest + 1)}
    eventually(lambda: beside_in(house.store, keys, wanted) == "", 30)
    assert house.ask("models", "show", "kept")["name"] == name
    house.ask("models", "untag", name, "kept")
    house.ask("models", "rm", name)
    assert beside_in(house.store, keys, wanted - {number}) == ""


def test_what_nobody_needs_is_cleaned_up(house: CanaryContext, run: str) -> None:
    house.ask("models", "gc")
    stranger = RunKeys("default", "long-gone-1")
    planted = [
        stranger.version(0),
        stranger.update(1, 1, "device-9"),
        RunKeys("default", run).state(1),
    ]
    for key in planted:
        house.store.put(key, b"x" * 100)
    upload = house.store.begin_upload(stranger.version(1))
    house.store.put_part(stranger.version(1), upload, 1, memoryview(b"y" * 100))
    before = house.names()
    shown = house.tell("models", "gc", "--dry-run").out
    assert shown.endswith("Would remove 3 objects of 300 B and 1 unfinished upload.\n")
    assert sorted(shown.splitlines()[:3]) == sorted(planted)
    told = house.tell("models", "gc").out
    assert told.endswith("Removed 3 objects of 300 B and 1 unfinished upload.\n")
    assert not list(house.store.list(stranger.prefix))
    assert not list(house.store.uploads(stranger.prefix))
    assert house.names() == before
    assert house.ask("models", "gc")["objects"] == 0


def test_a_changed_object_is_refused(house: CanaryContext, run: str, tmp_path: Path) -> None:
    assert "is what this site's server signed" in house.tell("models", "verify", f"{run}:3").out
    path = tmp_path / "model.safetensors"
    house.ask("models", "get", f"{run}:3", "--output", path)
    assert "is what this site's server signed" in house.tell("models", "verify", path).out
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    house.store.put(RunKeys("default", run).version(3), bytes(data))
    told = house.tell("models", "verify", f"{run}:3")
    assert told.code == UNREACHABLE
    assert "sha256" in told.line
    path.write_bytes(data)
    assert "sha256" in house.tell("models", "verify", path).line
    data[-1] ^= 1
    house.store.put(RunKeys("default", run).version(3), bytes(data))
    assert house.tell("models", "verify", f"{run}:3").code == DONE


def test_the_store_alone_brings_everything_back(house: CanaryContext, run: str) -> None:
    """The server's database is gone: the listing rebuilds the registry, and says the same."""
    house.ask("models", "tag", f"{run}:3", "best")
    house.ask("models", "promote", f"{run}:2")
    before = house.ask("models", "ls")["models"]
    assert any(row["metrics"] for row in before)
    house.stop()
    (journal,) = house.folder.rglob("journal.sqlite")
    for path in journal.parent.glob("journal.sqlite*"):
        path.unlink()
    house.start()

    def after() -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = house.ask("models", "ls")["models"]
        return rows

    eventually(lambda: after() == before, 30)
    assert house.ask("models", "show", "best")["name"] == f"{run}:3"
    assert house.ask("models", "show", "digits@production")["name"] == f"{run}:2"
    # nothing is known here of those runs: what has a stage or tag stays, and the latest few
    house.ask("models", "gc")
    assert {f"{run}:2", f"{run}:3", f"{run}:4"} <= set(house.names("--run", run))
    house.start_devices()


def test_a_killed_server_loses_no_version(house: CanaryContext) -> None:
    told = house.tell("run", "digits", "--rounds", "100000")
    run_id = submitted(told)
    for _ in range(3):
        time.sleep(0.7)  # a moment of a round, whichever
        os.kill(house.site.children["server"].pid, signal.SIGKILL)
        eventually(lambda: house.tell("runs", "show", run_id).code == DONE, 60)
        done = house.ask("runs", "show", run_id)["rounds_completed"]
        eventually(
            lambda done=done: house.ask("runs", "show", run_id)["rounds_completed"] > done, 60
        )
    house.ask("runs", "stop", run_id)
    latest = house.ask("runs", "show", run_id)["rounds_completed"]
    keys = RunKeys("default", run_id)
    wanted = {latest, latest - 1, latest - 2}
    eventually(lambda: beside_in(house.store, keys, wanted) == "", 30)
    assert house.names("--run", run_id) == [f"{run_id}:{number}" for number in sorted(wanted)[::-1]]
