"""A clock that stands still until the next thing happens: a queue of what is due when. Pure."""

from __future__ import annotations

import heapq
from itertools import count
from typing import Generic, TypeVar

T = TypeVar("T")


class VirtualClock(Generic[T]):
    """The virtual time, which only goes forward, and what will happen.

    What is due at the same moment happens in the order in which it was planned.
    """

    def __init__(self) -> None:
        self.now_s = 0.0
        self._due: list[tuple[float, int, T]] = []
        self._numbers = count()

    def __len__(self) -> int:
        return len(self._due)

    def at(self, when_s: float, what: T) -> None:
        """Plan something for a moment, which is not before now.

        Raises:
            ValueError: the moment is past, or not a number.
        """
        if not when_s >= self.now_s:
            raise ValueError(f"{what} cannot happen at {when_s} s: it is {self.now_s} s")
        heapq.heappush(self._due, (when_s, next(self._numbers), what))

    def planned(self) -> list[T]:
        """Return what is planned, in no order."""
        return [what for _, _, what in self._due]

    def advance(self) -> T | None:
        """Go on to the next thing that happens and return it, None where nothing is planned."""
        if not self._due:
            return None
        self.now_s, _, what = heapq.heappop(self._due)
        return what
