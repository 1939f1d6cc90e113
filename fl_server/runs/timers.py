"""The timers that runs have armed, by the monotonic clock. The owner's thread uses them."""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from fl_server.rounds.events import ArmTimer


@dataclass(order=True)
class _Timer:
    due_s: float
    number: int
    run_id: str = field(compare=False)
    command: ArmTimer = field(compare=False)


class Timers:
    """Each fires once; those that are due at one moment in the order in which they were armed."""

    def __init__(self) -> None:
        self._armed: list[_Timer] = []
        self._numbers = itertools.count()

    def arm(self, run_id: str, command: ArmTimer) -> None:
        """Have the command come back after its time."""
        due_s = time.monotonic() + command.seconds
        heapq.heappush(self._armed, _Timer(due_s, next(self._numbers), run_id, command))

    def due_s(self) -> float:
        """Return when the next one fires."""
        return self._armed[0].due_s if self._armed else math.inf

    def fired(self) -> Iterator[tuple[str, ArmTimer]]:
        """Yield whose time is over; what is armed meanwhile may be among them."""
        while self._armed and self._armed[0].due_s <= time.monotonic():
            timer = heapq.heappop(self._armed)
            yield timer.run_id, timer.command
