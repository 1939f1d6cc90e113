"""The training processes that are kept warm: one for each task in use, within a bound of memory."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field

from fl_client.training.child import TrainingChild
from runtime.processes.memory import give_back
from runtime.processes.rss import rss_bytes

_LOG = logging.getLogger(__name__)


@dataclass
class WarmProcess:
    """A training process, the runs that go on with it, and when it last did something."""

    child: TrainingChild
    runs: set[str] = field(default_factory=set)
    used_s: float = 0.0


class WarmProcesses:
    """Processes by the name of what they are for. At most one is busy. One thread uses it.

    Args:
        idle_bytes: what those that wait may hold together beside the one that works; 0 for none.
        keep_s: how long one outlives its last job.
    """

    def __init__(self, idle_bytes: int, keep_s: float) -> None:
        self._idle_bytes = idle_bytes
        self._keep_s = keep_s
        # the least recently used first
        self._kept: dict[str, WarmProcess] = {}

    def pids(self) -> list[int]:
        """Return the running processes, the one that was used last at the end."""
        found = (each.child.pid for each in self._kept.values())
        return [pid for pid in found if pid is not None]

    def use(self, name: str, run_id: str) -> TrainingChild | None:
        """Return the process of a name for a job of a run, None where there is none.

        First those are ended that may not wait beside the job, the least recently used first.
        """
        found = self._kept.pop(name, None)
        self._make_room()
        if found is None:
            return None
        self._note_use(name, found, run_id)
        return found.child

    def add(self, name: str, child: TrainingChild, run_id: str) -> None:
        """Keep a new process, for a job of a run."""
        self._note_use(name, WarmProcess(child), run_id)

    def touch(self) -> None:
        """Note that the process that was used last did something."""
        last = next(reversed(self._kept.values()), None)
        if last is not None:
            last.used_s = time.monotonic()

    def kill_busy(self) -> None:
        """End the process that works, if any does, with its job."""
        for each in self._kept.values():
            if each.child.busy:
                each.child.kill()

    def end_run(self, run_id: str) -> None:
        """End the processes that no other run goes on with."""
        for name, each in list(self._kept.items()):
            each.runs.discard(run_id)
            if not each.runs:
                self._end(name, "its run has ended")

    def end_waiting(self, why: str) -> None:
        """End all processes but the one that was used last."""
        for name in list(self._kept)[:-1]:
            self._end(name, why)

    def end_idle(self) -> None:
        """End the processes that have waited long enough."""
        for name, each in list(self._kept.items()):
            if self._left_s(each) == 0:
                self._end(name, "idle")

    def end_all(self, why: str) -> None:
        """End every process."""
        for name in list(self._kept):
            self._end(name, why)

    def idle_left_s(self) -> float | None:
        """Return how long until :meth:`end_idle` ends one, None where none waits."""
        found = (self._left_s(each) for each in self._kept.values())
        return min((left_s for left_s in found if left_s is not None), default=None)

    def _left_s(self, process: WarmProcess) -> float | None:
        if not process.child.running or process.child.busy:
            return None
        return max(0.0, process.used_s + self._keep_s - time.monotonic())

    def _note_use(self, name: str, process: WarmProcess, run_id: str) -> None:
        process.runs.add(run_id)
        process.used_s = time.monotonic()
        self._kept[name] = process

    def _make_room(self) -> None:
        held = {name: self._held_bytes(each.child) for name, each in self._kept.items()}
        for name in list(held):
            if sum(held.values()) > self._idle_bytes or not self._idle_bytes:
                self._end(name, "another task is next")
                del held[name]

    def _held_bytes(self, child: TrainingChild) -> int:
        if child.pid is None:
            return 0
        held = rss_bytes(child.pid)
        # what the kernel does not tell counts as too much
        return self._idle_bytes + 1 if held is None else held

    def _end(self, name: str, why: str) -> None:
        child = self._kept.pop(name).child
        if child.running:
            _LOG.info("training process of task %s ends: %s", name, why)
            child.stop()
            give_back()  # of what its rounds took
