"""A killed training process: it trains in smaller pieces if it lacked memory, else as before."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any, cast

import pytest

from fl_client.agent.resource_policy import Unbounded
from fl_client.agent.worker import TrainingWorker, WorkerSetup
from fl_client.jobs.folder import DeviceFolder
from fl_client.machine.oom_kills import OomKills
from fl_client.session import events as s
from fl_client.session.machine import GOOD_BEFORE_GROWTH, DeviceSession
from fl_client.settings import AgentSettings
from fl_client.training.child import ChildDied, ChildFailed
from fl_client.training.frames import TrainingJob
from tests.unit.fl_client.test_session import (
    OUTCOME,
    arrive,
    at,
    fail,
    kinds,
    order,
    receipt,
    run_at,
)


def machine(
    root: Path, count: int | None, own: int | None = None, total_kib: int = 1 << 30
) -> None:
    """Write what a kernel tells: kills of the machine, and of our own control group."""
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    (root / "proc/meminfo").write_text(f"MemTotal: {total_kib} kB\nMemFree: 1 kB\n")
    (root / "proc/self/cgroup").write_text("0::/agent\n")
    if count is not None:
        (root / "proc/vmstat").write_text(f"nr_free 1\noom_kill {count}\nswap 0\n")
    if own is not None:
        (root / "sys/fs/cgroup/agent").mkdir(parents=True, exist_ok=True)
        (root / "sys/fs/cgroup/agent/memory.events").write_text(f"low 0\noom 9\noom_kill {own}\n")


# --- what the kernel says ----------------------------------------------------------------


def test_a_kill_that_the_kernel_counts_was_for_memory_and_is_told_once(tmp_path: Path) -> None:
    machine(tmp_path, 7)
    kills = OomKills(tmp_path)
    kills.begin()
    assert kills.verdict() == "enough"
    machine(tmp_path, 8)
    assert kills.verdict() == "short"
    assert kills.verdict() == "enough"


def test_the_count_of_the_own_group_comes_first(tmp_path: Path) -> None:
    machine(tmp_path, 7, own=1)
    kills = OomKills(tmp_path)
    kills.begin()
    machine(tmp_path, 8, own=1)  # of another program
    assert kills.verdict() == "enough"
    machine(tmp_path, 9, own=2)
    assert kills.verdict() == "short"


def test_where_nothing_counts_it_is_suspected(tmp_path: Path) -> None:
    kills = OomKills(tmp_path)
    kills.begin()
    assert kills.verdict() == "suspected"


def test_a_large_process_may_have_been_killed_by_a_program_of_the_owner(tmp_path: Path) -> None:
    # such as earlyoom, whose kills the kernel does not count
    largest_kib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    machine(tmp_path, 7, total_kib=max(1, largest_kib // 4))
    kills = OomKills(tmp_path)
    kills.begin()
    assert kills.verdict() == ("suspected" if largest_kib > 4 else "enough")


# --- what the agent makes of it ----------------------------------------------------------------


def worker_of(folder: Path) -> TrainingWorker:
    settings = AgentSettings(identity=folder / "d.json", data_dir=folder / "data")
    place, bundles = DeviceFolder(settings.data_dir), cast("Any", None)
    setup = WorkerSetup("d", settings, "numpy")
    return TrainingWorker(setup, bundles, place, Unbounded(), lambda _: None)


class Kills(OomKills):
    says: Any = "enough"

    def begin(self) -> None:
        pass

    def verdict(self) -> Any:
        return self.says


@pytest.mark.parametrize(
    ("says", "reason"),
    [
        ("enough", "training was killed (SIGKILL)"),
        ("suspected", "training was killed (SIGKILL): out of memory?"),
        ("short", "training was killed (SIGKILL): out of memory"),
    ],
)
def test_a_killed_process_is_reported_with_what_is_known(
    tmp_path: Path, says: str, reason: str
) -> None:
    worker = worker_of(tmp_path)
    kills = Kills()
    kills.says = says
    vars(worker)["_oom_kills"] = kills
    job = TrainingJob(run_id="run", round=1, attempt=1, device_id="d")
    found = worker.translate(ChildDied(job, -9, "training was killed (SIGKILL)", expected=False))
    assert isinstance(found, s.JobFailed)
    assert (found.memory, found.reason, found.retryable) == (says, reason, True)
    other = worker.translate(ChildDied(job, -11, "ended by SIGSEGV", expected=False))
    assert isinstance(other, s.JobFailed)
    assert (other.memory, other.reason) == ("enough", "ended by SIGSEGV")


@pytest.mark.parametrize("loaded", [True, False])
def test_what_training_printed_is_told_with_the_refusal(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, loaded: bool
) -> None:
    worker = worker_of(tmp_path)
    log = DeviceFolder(tmp_path / "data").training_log
    log.write_text("of an earlier job\n")
    vars(worker)["_log_start"] = log.stat().st_size
    lines = [f"line {number}" for number in range(30)]
    with log.open("a") as file:
        file.write("\n".join(lines) + "\n\nValueError: wrong\n")
    job = TrainingJob(run_id="run", round=1, attempt=1, device_id="d") if loaded else None
    worker.translate(ChildFailed(job, "ValueError: wrong (a.py:3)", retryable=False))
    if not loaded:
        worker.translate(ChildDied(None, 2, "training exited with status 2", expected=False))
    (record,) = caplog.records
    told = record.getMessage().splitlines()
    assert told[0] == f"training failed: ValueError: wrong (a.py:3); the end of {log}:"
    assert told[1:] == [f"    {line}" for line in [*lines[-19:], "ValueError: wrong"]]


# --- what the session makes of it ----------------------------------------------------------------


def test_kills_for_other_reasons_never_make_batches_smaller() -> None:
    session = at("working")
    (again,) = fail(session, "enough")
    assert isinstance(again, s.DoWork)
    assert again.job.shrink == 0
    assert kinds(fail(session, "enough"))[:2] == ["SendDecline", "ForgetJob"]
    assert shrink_of_round(session, 2) == 0


def shrink_of_round(session: DeviceSession, number: int) -> int:
    session.handle(run_at(number))
    commands = arrive(session, order(round_number=number))
    (fetch,) = [each for each in commands if isinstance(each, s.FetchModel)]
    return fetch.job.shrink


def train(session: DeviceSession, number: int) -> int:
    """Do a round that goes well; return how often its micro batch was quartered."""
    found = shrink_of_round(session, number)
    key = s.JobKey("run", "train", number, 1)
    for event in (s.ModelFetched(key), s.WorkFinished(key, OUTCOME), s.UpdateUploaded(key)):
        session.handle(event)
    session.handle(receipt(key))
    return found


def test_batches_grow_again_after_trainings_that_went_well_and_ever_later() -> None:
    session = at("working")
    fail(session, "short")
    key = s.JobKey("run", "train", 1, 1)
    session.handle(s.WorkFinished(key, OUTCOME))
    session.handle(s.UpdateUploaded(key))
    session.handle(receipt(key))
    # the first of them was the one that was repeated
    assert [train(session, number) for number in (2, 3, 4)] == [1, 1, 0]
    assert GOOD_BEFORE_GROWTH == 3
    # it is short again: twice as many must go well
    assert shrink_of_round(session, 5) == 0
    session.handle(s.ModelFetched(s.JobKey("run", "train", 5, 1)))
    fail(session, "short")
    session.handle(s.WorkFinished(s.JobKey("run", "train", 5, 1), OUTCOME))
    session.handle(s.UpdateUploaded(s.JobKey("run", "train", 5, 1)))
    session.handle(receipt(s.JobKey("run", "train", 5, 1)))
    assert [train(session, number) for number in range(6, 13)] == [1, 1, 1, 1, 1, 0, 0]
