"""A site and its devices go on with the folders that an earlier commit left in mid-work.

What is in them, and how they were recorded: ``tests/old_data/record.py``.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rengo
from broker.session.outbox import Outbox
from broker.wire.messages import Result, decode
from broker.wire.topics import parse
from fl_client.datasets.store import store_path, stored_refusals, stored_samples
from fl_client.jobs.journal import JobJournal
from fl_server.rounds.facts import RunCompleted, UpdateAccepted
from rengo.operator.bundles import bundles
from rengo.operator.canary import follow
from runtime.security.identity import read_identity
from storage.versions.keys import RunKeys
from storage.weights import read_safetensors
from tests.chaos.arena import Arena, Opened, honest_rounds, wait_for
from tests.old_data.counting import ROUNDS
from tests.old_data.fleet import DEVICES, TASK, TASK_NAME, TRAINERS, spec_of
from tests.old_data.restore import ARCHIVES, Restored, holds, read, restore

FACTS = "SELECT run_id, number, body FROM rengo_facts ORDER BY run_id, number"
AUDIT = "SELECT at, actor, act, subject FROM rengo_audit ORDER BY number"
JOBS = "SELECT stage, round, json_extract(outcome, '$.header_sha256') FROM jobs"


@pytest.fixture(scope="module", params=ARCHIVES, ids=lambda path: path.name.partition(".")[0])
def old(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Restored:
    """The folders as they were recorded."""
    return restore(request.param, tmp_path_factory.mktemp("old"))


@dataclass(frozen=True)
class Resumed:
    """The site, which has brought to an end what it had begun.

    Attributes:
        facts: of all runs, as they stood before the start.
        audit: likewise.
        awaited: the run whose version 0 was awaited.
        jobs: those that each device had kept: stage, round and the hash of the update's header.
        report: of the run that was in the middle.
        canary: the verdict of the one that was under way.
    """

    arena: Arena
    facts: list[tuple[Any, ...]]
    audit: list[tuple[Any, ...]]
    awaited: str
    jobs: dict[str, list[tuple[Any, ...]]]
    report: dict[str, Any]
    canary: dict[str, Any]

    def call(self, operation: str, **arguments: Any) -> dict[str, Any]:
        return self.arena.client.call(operation, arguments)

    def accepted(self, middle: str) -> dict[tuple[int, str], UpdateAccepted]:
        """Return the updates of the middle run that count, by round and device."""
        found = self.arena.of(middle, UpdateAccepted)
        return {(fact.round, fact.device_id): fact for fact in found}


@pytest.fixture(scope="module")
def ended(old: Restored) -> str:
    """The run that had ended."""
    run_id: str = old.expected["ended_run"]["run_id"]
    return run_id


@pytest.fixture(scope="module")
def middle(old: Restored) -> str:
    """The run that was in the middle of round 2."""
    run_id: str = old.expected["middle_run"]["run_id"]
    return run_id


@pytest.fixture(scope="module")
def resumed(old: Restored, middle: str) -> Iterator[Resumed]:
    facts, audit = old.rows(FACTS), old.rows(AUDIT)
    ((awaited,),) = old.rows("SELECT run_id FROM rengo_prepared")
    jobs = {name: read(old.device(name) / "jobs.sqlite", JOBS) for name in DEVICES}
    with Opened(old.folder, TASK) as arena:
        arena.runs.append(middle)
        for name in DEVICES:
            arena.prepare(spec_of(name)).start()
        wait_for(lambda: is_over(arena, middle), f"the end of {middle}", arena.story)
        report = arena.finish(middle)
        canary_id = old.expected["canary"]["canary_id"]
        canary = follow(arena.client, canary_id, lambda _: None).document()
        yield Resumed(arena, facts, audit, awaited, jobs, report, canary)


def is_over(arena: Arena, run_id: str) -> bool:
    """Whether the run has ended; a device that has ended with an error is not waited for."""
    for name in DEVICES:
        assert arena.own[name].running, f"{name}: {arena.log(name)[-1000:]}"
    return isinstance(arena.facts(run_id)[-1], RunCompleted)


# --- before anything is started: these come first ----------------------------------------------


def test_a_device_predicts_with_the_production_model_that_it_held(
    old: Restored, ended: str
) -> None:
    model = rengo.production_model(TASK_NAME, data_dir=old.device("t-1"))
    assert model.manifest.name == f"{ended}:2"
    assert model.weights.layout == read_safetensors(old.folder / "final.safetensors").layout


def test_a_device_reads_the_samples_that_it_gathered(old: Restored) -> None:
    path = store_path(old.folder / "samples")
    kept = list(stored_samples(path, 100))[::-1]
    assert [(each.group, each.label, list(each.features)) for each in kept] == [
        (f"g{number % 2}", number % 3, [0.5, number]) for number in range(6)
    ]
    assert stored_refusals(path) == 2


def test_a_device_reads_the_result_that_waits_for_its_receipt(
    old: Restored, middle: str, tmp_path: Path
) -> None:
    folder = shutil.copytree(old.device("t-2"), tmp_path / "t-2")
    with closing(Outbox(folder / "outbox.sqlite")) as outbox:
        (row,) = outbox.pending()
    own = read_identity(old.site / "identities" / "t-2.json")
    _, result = decode(row.payload, parse(row.topic), own.secret_key.public)
    assert isinstance(result, Result)
    assert result.update is not None
    assert (result.run_id, result.round, result.attempt) == (middle, 2, 1)
    with closing(JobJournal(folder / "jobs.sqlite")) as kept:
        (job,) = kept.jobs()
    assert job.stage == "reporting"
    assert job.outcome is not None
    assert job.outcome.header_sha256 == result.update.header_sha256
    assert job.outcome.metrics == result.metrics


# --- the site and its devices go on ------------------------------------------------------------


def test_the_run_in_the_middle_comes_to_the_end_that_it_would_have_had(
    resumed: Resumed, old: Restored, middle: str
) -> None:
    honest_rounds(resumed.arena, middle, set(TRAINERS))
    expected = old.expected["middle_run"]
    assert resumed.report["rounds_completed"] == expected["rounds_completed"] == 3
    then = [row["accuracy"] for row in expected["history"]]
    assert [row["accuracy"] for row in resumed.report["history"]] == pytest.approx(then, abs=0.01)
    final = read_safetensors(old.folder / "final.safetensors")
    with resumed.arena.store.open(RunKeys("default", middle).version(3)) as stream:
        path = old.folder / "resumed.safetensors"
        path.write_bytes(stream.read(1 << 20))
    now = read_safetensors(path)
    assert now.layout == final.layout
    # rounding may differ from machine to machine, and a device's training magnifies it
    assert np.allclose(now.vector, final.vector, atol=1e-3)


def test_what_had_been_journalled_stays_as_it_was(resumed: Resumed, old: Restored) -> None:
    assert set(resumed.facts) < set(old.rows(FACTS))


def test_what_a_device_had_done_counts_and_is_receipted(resumed: Resumed, middle: str) -> None:
    stages = {name: stage for name, rows in resumed.jobs.items() for stage, *_ in rows}
    assert stages == {"t-2": "reporting", "t-4": "uploading"}
    accepted = resumed.accepted(middle)
    for name in ("t-2", "t-4"):
        ((_, round_number, header_sha256),) = resumed.jobs[name]
        assert accepted[round_number, name].update.header_sha256 == header_sha256
    arena = resumed.arena

    def receipted() -> bool:
        return not any(arena.kept_stages(name) for name in DEVICES)

    wait_for(receipted, "all have their receipts", arena.story)


def test_every_old_file_is_read_and_none_set_aside(resumed: Resumed, old: Restored) -> None:
    for name in ["server", *DEVICES]:
        assert " ERROR " not in resumed.arena.log(name)
    assert not list(old.site.rglob("*damaged*"))


def test_the_state_that_an_algorithm_keeps_on_a_device_goes_on(
    resumed: Resumed, middle: str
) -> None:
    for (round_number, _), fact in resumed.accepted(middle).items():
        assert fact.update.metrics[ROUNDS] == round_number


def test_a_training_goes_on_from_its_checkpoint(resumed: Resumed, old: Restored) -> None:
    assert "goes on from a checkpoint" in (old.device("t-3") / "training.log").read_text()
    for name in ("t-1", "t-2", "t-4"):
        assert "from a checkpoint" not in (old.device(name) / "training.log").read_text()


def test_the_ended_run_is_listed_with_its_report(
    resumed: Resumed, old: Restored, ended: str, middle: str
) -> None:
    listed = {row["run_id"]: row["status"] for row in resumed.call("runs_ls")["runs"]}
    assert listed == {ended: "completed", middle: "completed"}
    shown, expected = resumed.call("runs_show", run_id=ended), old.expected["ended_run"]
    for name in ("task", "status", "rounds_completed", "accuracy", "loss", "model_sha256"):
        assert shown[name] == expected[name]
    for row, was in zip(shown["history"], expected["history"], strict=True):
        assert holds(row, was), "a row has what it had, and perhaps more"


def test_a_run_whose_version_0_was_awaited_is_awaited_still(resumed: Resumed) -> None:
    assert resumed.call("runs_renew", run_id=resumed.awaited)["run_id"] == resumed.awaited


def test_the_canary_comes_to_its_verdict(resumed: Resumed, old: Restored) -> None:
    expected = old.expected["canary"]
    for name in ("verdict", "pairs", "candidate", "production", "cohort", "problem"):
        assert resumed.canary[name] == expected[name]
    for name in ("candidate_mean", "production_mean"):
        assert resumed.canary[name] == pytest.approx(expected[name], abs=1e-6)


def test_the_canary_that_had_ended_is_told_of(resumed: Resumed, ended: str) -> None:
    begun = [subject for _, _, act, subject in resumed.audit if act == "canary rolled back"]
    assert begun == [f"{ended}:0"]
    entries = resumed.call("audit_ls")["entries"]
    (entry,) = [each for each in entries if each["act"] == "canary rolled back"]
    detail = entry["detail"]
    shown = resumed.call("canary_show", canary_id=detail["canary"])
    assert (shown["state"], shown["verdict"], shown["pairs"]) == ("ended", "rolled_back", 2)
    assert shown["reason"] == detail["why"]


def test_versions_and_production_are_what_they_should_be(
    resumed: Resumed, old: Restored, ended: str, middle: str
) -> None:
    rows = {row["name"]: row for row in resumed.call("models_ls")["models"]}
    assert sorted(rows) == old.expected["versions"]
    now = resumed.call("models_show", name=f"{TASK_NAME}@production")["name"]
    assert now == old.expected["production"] == f"{ended}:1"
    assert rows[f"{ended}:1"]["tags"] == ["kept"]
    stages = {name: row["stage"] for name, row in rows.items() if row["stage"] != "none"}
    assert stages == {
        f"{ended}:0": "archived",
        f"{ended}:1": "production",
        f"{ended}:2": "archived",
    }
    parent = resumed.call("models_show", name=f"{middle}:1")["manifest"]["parent"]
    assert parent["run_id"] == middle


@pytest.mark.usefixtures("resumed")
def test_devices_follow_what_is_promoted_now(old: Restored) -> None:
    def held(name: str) -> str:
        model = rengo.production_model(TASK_NAME, data_dir=old.device(name))
        return model.manifest.name

    now = old.expected["production"]
    wait_for(lambda: {held(name) for name in DEVICES} == {now}, f"all hold {now}")


def test_members_and_bundles_are_known(resumed: Resumed) -> None:
    assert resumed.arena.online() == set(DEVICES)
    rows = {each.id: each.status for each in resumed.arena.client.devices()}
    assert set(rows) == {*DEVICES, "revoked-1"}
    assert rows["revoked-1"] == "revoked"
    (tiny,) = bundles(resumed.arena.client)
    assert tiny.name.startswith("tiny@")


def test_the_rotation_of_a_password_is_brought_to_its_end(resumed: Resumed) -> None:
    def rotating() -> bool:
        rows = {each.id: each for each in resumed.arena.client.devices()}
        return bool(rows["t-3"].rotating)

    wait_for(lambda: not rotating(), "t-3 has its new password", resumed.arena.story)


def test_the_audit_log_verifies_and_goes_on(resumed: Resumed, old: Restored) -> None:
    entries = resumed.call("audit_verify")["entries"]
    assert entries > len(resumed.audit)
    assert old.rows(AUDIT)[: len(resumed.audit)] == resumed.audit
