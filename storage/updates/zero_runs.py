"""Where a vector is zero: the runs that an update of a frozen layer need not carry. Pure."""

from __future__ import annotations

import numpy as np

from storage.weights import Vector

GRAIN = 1 << 12
"""Values: every run of twice as many zeros is found, and none of fewer."""
_ROWS = 64


def zero_runs(vector: Vector, most: int, grain: int = GRAIN) -> list[tuple[int, int]]:
    """Return where runs of zeros begin and end, in order: the ``most`` longest if there are more.

    Positive and negative zeros both count. A vector without zeros costs one look for each grain.
    """
    rows = vector[: vector.size // grain * grain].reshape(-1, grain)
    quiet = rows[:, 0] == 0
    found = np.flatnonzero(quiet)
    for start in range(0, found.size, _ROWS):
        part = found[start : start + _ROWS]
        quiet[part] = ~rows[part].any(axis=1)
    edges = np.flatnonzero(np.diff(quiet, prepend=False, append=False))
    firsts, lasts = edges[::2], edges[1::2]
    if firsts.size > most:
        kept = np.sort(np.argsort(firsts - lasts, kind="stable")[: max(0, most)])
        firsts, lasts = firsts[kept], lasts[kept]
    return [
        _widened(vector, int(first) * grain, int(last) * grain, grain)
        for first, last in zip(firsts, lasts, strict=True)
    ]


def _widened(vector: Vector, start: int, end: int, grain: int) -> tuple[int, int]:
    """Return the run with the zeros on both sides of it, which are fewer than a grain."""
    before = np.flatnonzero(vector[max(0, start - grain) : start][::-1])
    after = np.flatnonzero(vector[end : end + grain])
    left = int(before[0]) if before.size else min(start, grain)
    right = int(after[0]) if after.size else min(vector.size - end, grain)
    return start - left, end + right
