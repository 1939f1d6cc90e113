"""The world's clock, its dice and its history: one seed, one order of events."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

MAX_EVENTS = 60_000


@dataclass
class Odds:
    """How likely each thing is to go wrong each time it is done; all zero when faults stop."""

    message_lost: float = 0.0
    message_doubled: float = 0.0
    message_delayed: float = 0.0
    will_late: float = 0.0
    download_fails: float = 0.0
    upload_fails: float = 0.0
    upload_torn: float = 0.0
    upload_answer_lost: float = 0.0
    upload_flipped: float = 0.0
    upload_hopeless: float = 0.0
    cancelled_upload_lands: float = 0.0
    transfer_slow: float = 0.0
    work_fails: float = 0.0
    work_breaks: float = 0.0
    check_slow: float = 0.0
    delete_fails: float = 0.0
    aggregation_fails: float = 0.0
    server_dies_in_step: float = 0.0
    device_dies_in_step: float = 0.0

    def stop(self) -> None:
        """Let nothing go wrong any more."""
        for odd in fields(self):
            setattr(self, odd.name, 0.0)


class Kernel:
    """Events in order of virtual time; equal times in the order in which they were asked for."""

    def __init__(self, seed: int | str) -> None:
        self.rng = random.Random(seed)
        self.random = self.rng.random
        self.odds = Odds()
        self.now = 0.0
        self.events = 0
        self.log: list[tuple[float, str, str, Any]] = []
        self._asked = 0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []

    def after(self, seconds: float, action: Callable[..., None], *args: Any) -> None:
        """Do ``action`` in ``seconds`` of virtual time."""
        self._asked += 1
        heapq.heappush(self._heap, (self.now + seconds, self._asked, action, args))

    def between(self, low: float, high: float) -> float:
        """Return a duration."""
        return low + (high - low) * self.random()

    def happens(self, odds: float) -> bool:
        """Return whether it goes wrong this time; draws nothing when it cannot."""
        return odds > 0.0 and self.random() < odds

    def note(self, who: str, what: str, detail: Any = "") -> None:
        """Add a line to the history; it is written out only when it is asked for."""
        self.log.append((self.now, who, what, detail))

    def run(self) -> bool:
        """Run until nothing is to be done; returns False when that took too many events."""
        heap, pop = self._heap, heapq.heappop
        while heap:
            self.now, _, action, args = pop(heap)
            action(*args)
            self.events += 1
            if self.events > MAX_EVENTS:
                return False
        return True

    def lines(self) -> list[str]:
        """Return the history as readable lines."""
        return [
            f"{now:8.2f}s {who:>7}  {what} {_short(detail)}" for now, who, what, detail in self.log
        ]


def _short(detail: Any) -> str:
    if isinstance(detail, tuple):
        return " ".join(_short(part) for part in detail)
    if not hasattr(detail, "__dataclass_fields__"):
        return str(detail)
    name = type(detail).__name__
    parts = []
    for field in fields(detail):
        value = getattr(detail, field.name)
        if field.name in {"order", "outcome", "metrics"} or value in ("", None):
            continue
        parts.append(f"{field.name}={_short(value)}")
    return f"{name}({', '.join(parts)})"
