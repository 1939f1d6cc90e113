"""The pauses between attempts, for a loop that waits by itself. Without tenacity: a device's MQTT
session needs no more than this.
"""

from __future__ import annotations

import random

_MOST_DOUBLINGS = 64
# the pauses of many devices must differ, also where a task has seeded the global generator
_RANDOM = random.SystemRandom()


class Backoff:
    """The pauses of a loop that has its own waiting: each ``factor`` times the last, to a bound.

    Args:
        first_s: the first pause.
        longest_s: the bound.
        factor: how fast the pauses grow.
        least: a pause is drawn from this part of its full length to the whole: 0 is full jitter,
            1 is none.
    """

    def __init__(
        self, first_s: float, longest_s: float, *, factor: float = 2.0, least: float = 0.0
    ) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._factor = factor
        self._least = least
        self.attempts = 0

    def next_s(self) -> float:
        """Return the next pause in seconds and count the attempt."""
        full_s = min(self._longest_s, self._first_s * self._factor**self.attempts)
        self.attempts = min(self.attempts + 1, _MOST_DOUBLINGS)
        return full_s * _RANDOM.uniform(self._least, 1.0)

    def reset(self) -> None:
        """Begin with the first pause again: an attempt has succeeded."""
        self.attempts = 0
