"""The timers that flows have armed, by the monotonic clock. The owner's thread uses them."""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections.abc import Iterator
from typing import TypeAlias

from fl_server.flows.commands import ArmTimer
from fl_server.flows.events import TimerFired

_Key: TypeAlias = tuple[str, TimerFired]


class Timers:
    """Each fires once, and those that are due together in the order in which they were armed."""

    def __init__(self) -> None:
        self._due: dict[_Key, tuple[float, int]] = {}
        self._heap: list[tuple[float, int, str, TimerFired]] = []
        self._numbers = itertools.count()

    def arm(self, run_id: str, command: ArmTimer) -> None:
        """Arm a timer, in place of the same timer that has not fired yet."""
        event = TimerFired(command.timer, command.round, command.attempt)
        due = (time.monotonic() + command.seconds, next(self._numbers))
        self._due[run_id, event] = due
        heapq.heappush(self._heap, (*due, run_id, event))

    def left_s(self, run_id: str, event: TimerFired) -> float | None:
        """Return the time until a timer fires, at least 0, None where it is not armed."""
        due = self._due.get((run_id, event))
        return None if due is None else max(0.0, due[0] - time.monotonic())

    def has(self, run_id: str) -> bool:
        """Whether a timer of a run is armed."""
        return any(each == run_id for each, _ in self._due)

    def drop(self, run_id: str) -> None:
        """Drop the timers of a run."""
        for key in [each for each in self._due if each[0] == run_id]:
            del self._due[key]

    def due_s(self) -> float:
        """Return when the next one fires."""
        self._drop_replaced()
        return self._heap[0][0] if self._heap else math.inf

    def fired(self) -> Iterator[tuple[str, TimerFired]]:
        """Yield the timers whose time is over, also those that are armed meanwhile."""
        while self.due_s() <= time.monotonic():
            *_, run_id, event = heapq.heappop(self._heap)
            del self._due[run_id, event]
            yield run_id, event

    def _drop_replaced(self) -> None:
        while self._heap:
            due_s, number, run_id, event = self._heap[0]
            if self._due.get((run_id, event)) == (due_s, number):
                return
            heapq.heappop(self._heap)
