"""Which training processes are kept between jobs: those that together hold little, latest first."""

from __future__ import annotations

from typing import Any

import pytest

from fl_client.agent import warm
from fl_client.agent.resource_policy import Unbounded
from fl_client.agent.warm import WarmProcesses
from fl_client.agent.worker import WorkerSetup, _idle_bytes
from fl_client.machine.accelerators import CPU, UNKNOWN, Accelerator
from fl_client.settings import AgentSettings

MIB = 1 << 20
KEEP_S = 60.0


class Child:
    """A process that is only counted."""

    def __init__(self, pid: int) -> None:
        self.pid: int | None = pid
        self.busy = False

    @property
    def running(self) -> bool:
        return self.pid is not None

    def stop(self) -> None:
        self.pid = None

    def kill(self) -> None:
        self.pid, self.busy = None, False


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> dict[int, int | None]:
    """What each process holds."""
    found: dict[int, int | None] = {}
    monkeypatch.setattr(warm, "rss_bytes", lambda pid: found.get(pid, 40 * MIB))
    return found


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(warm.time, "monotonic", lambda: now[0])
    return now


def work(kept: WarmProcesses, name: str, run_id: str = "") -> Any:
    """Use the process of a name, which is started if there is none."""
    child = kept.use(name, run_id or name)
    if child is None:
        pids = [0, *kept.pids()]
        child = Child(max(pids) + 1)  # type: ignore[assignment]
        kept.add(name, child, run_id or name)  # type: ignore[arg-type]
    return child


def test_runs_that_take_turns_keep_their_processes(held: dict[int, int | None]) -> None:
    kept = WarmProcesses(100 * MIB, KEEP_S)
    first, second = work(kept, "a"), work(kept, "b")
    assert [work(kept, name) for name in ("a", "b", "a")] == [first, second, first]
    assert kept.pids() == [second.pid, first.pid]


def test_the_least_recently_used_end_first_where_those_that_wait_hold_too_much(
    held: dict[int, int | None],
) -> None:
    kept = WarmProcesses(100 * MIB, KEEP_S)
    for name in ("a", "b", "a", "c"):
        work(kept, name)
    work(kept, "d")  # beside it 120 MiB would wait
    assert kept.pids() == [1, 3, 4]
    held[3] = 70 * MIB
    work(kept, "d")  # 110 MiB
    assert kept.pids() == [3, 4]


@pytest.mark.parametrize("idle_bytes", [0, 100 * MIB])
def test_where_nothing_is_known_or_allowed_one_is_kept(
    held: dict[int, int | None], idle_bytes: int
) -> None:
    kept = WarmProcesses(idle_bytes, KEEP_S)
    first = work(kept, "a")
    held[first.pid] = None if idle_bytes else 0
    second = work(kept, "b")
    assert kept.pids() == [second.pid]
    assert not first.running


def test_a_process_ends_with_the_last_of_its_runs(held: dict[int, int | None]) -> None:
    kept = WarmProcesses(100 * MIB, KEEP_S)
    shared, other = work(kept, "a", "run-1"), work(kept, "b", "run-2")
    assert work(kept, "a", "run-3") is shared
    kept.end_run("run-1")
    assert shared.running
    kept.end_run("run-3")
    assert (shared.running, other.running) == (False, True)
    assert kept.use("a", "run-4") is None


def test_each_waits_for_its_own_time(held: dict[int, int | None], clock: list[float]) -> None:
    kept = WarmProcesses(100 * MIB, KEEP_S)
    assert kept.idle_left_s() is None
    first = work(kept, "a")
    clock[0] += 50
    second = work(kept, "b")
    assert kept.idle_left_s() == 10.0
    clock[0] += 10
    second.busy = True
    kept.end_idle()
    assert (first.running, second.running) == (False, True)
    assert kept.idle_left_s() is None
    second.busy = False
    kept.touch()
    assert kept.idle_left_s() == KEEP_S


def test_a_cancelled_job_ends_its_own_process_alone(held: dict[int, int | None]) -> None:
    kept = WarmProcesses(100 * MIB, KEEP_S)
    first, second = work(kept, "a"), work(kept, "b")
    second.busy = True
    kept.kill_busy()
    assert (first.running, second.running) == (True, False)


def test_short_memory_ends_those_that_wait(held: dict[int, int | None]) -> None:
    kept = WarmProcesses(100 * MIB, KEEP_S)
    first, second = work(kept, "a"), work(kept, "b")
    kept.end_waiting("memory is short")
    assert (first.running, second.running) == (False, True)
    kept.end_all("the agent stops")
    assert kept.pids() == []


class Limited(Unbounded):
    def memory_bytes(self) -> int:
        return 1 << 30


@pytest.mark.parametrize(
    ("accelerator", "limited", "several"),
    [
        (CPU, False, True),
        (Accelerator("cpu:1"), False, True),
        (CPU, True, False),
        (Accelerator("cuda:0"), False, False),
        (UNKNOWN, False, False),
    ],
)
def test_several_wait_where_memory_is_neither_limited_nor_an_accelerator_s(
    accelerator: Accelerator, limited: bool, several: bool, tmp_path: Any
) -> None:
    settings = AgentSettings(identity=tmp_path / "d.json", data_dir=tmp_path)
    setup = WorkerSetup("d", settings, "numpy", (accelerator,))
    policy = Limited() if limited else Unbounded()
    assert bool(_idle_bytes(setup, policy)) == several
