"""The runs of zeros in a vector, which an update need not carry, as of a frozen layer. Pure."""

from __future__ import annotations

import numpy as np

from storage.weights import Vector

GRAIN = 1 << 12
"""In values: every run of at least twice as many zeros is found, and none shorter than this."""
_ROWS = 64


def zero_runs(vector: Vector, most: int, grain: int = GRAIN) -> list[tuple[int, int]]:
    """Return the start and end of runs of zeros, in order: the ``most`` longest if there are more.

    Positive and negative zeros both count. In a vector without zeros one value of each grain is
    read.
    """
    rows = vector[: vector.size // grain * grain].reshape(-1, grain)
    is_zero = rows[:, 0] == 0
    found = np.flatnonzero(is_zero)
    for start in range(0, found.size, _ROWS):
        part = found[start : start + _ROWS]
        is_zero[part] = ~rows[part].any(axis=1)
    edges = np.flatnonzero(np.diff(is_zero, prepend=False, append=False))
    firsts, lasts = edges[::2], edges[1::2]
    if firsts.size > most:
        kept = np.sort(np.argsort(firsts - lasts, kind="stable")[: max(0, most)])
        firsts, lasts = firsts[kept], lasts[kept]
    return [
        _widened(vector, int(first) * grain, int(last) * grain, grain)
        for first, last in zip(firsts, lasts, strict=True)
    ]


def _widened(vector: Vector, start: int, end: int, grain: int) -> tuple[int, int]:
    """Return the run with the zeros on both sides of it, fewer than a grain each."""
    before = np.flatnonzero(vector[max(0, start - grain) : start][::-1])
    after = np.flatnonzero(vector[end : end + grain])
    left = int(before[0]) if before.size else min(start, grain)
    right = int(after[0]) if after.size else min(vector.size - end, grain)
    return start - left, end + right
