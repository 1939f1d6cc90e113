"""Which bytes of the next version differ from its base, learnt while both are in the cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from fl_server.aggregation.arithmetic.exact import Float32s
from storage.transfer.byte_ranges import MAX_SHARE, Range, coalesced, saves_enough

Bits: TypeAlias = npt.NDArray[np.uint32]

_GRAIN = 1 << 12


class Changes:
    """The changed ranges of a file whose floats are told block by block.

    Args:
        before: what stands before the floats of the earlier file.
        after: what stands before those of the new one; what follows them is the same in both.
        size: the floats' bytes.
    """

    def __init__(self, before: bytes, after: bytes, size: int) -> None:
        self._position = len(after)
        self._left = MAX_SHARE * size if before == after else -1.0
        self._ranges: list[Range] = []

    def compare(self, old: Float32s, new: Float32s) -> None:
        """Take the next block; when too much has changed, no further look is taken."""
        if self._left < 0:
            return
        before, after = old.view(np.uint32), new.view(np.uint32)
        whole = before.size // _GRAIN * _GRAIN
        changed = _changed_rows(
            before[:whole].reshape(-1, _GRAIN), after[:whole].reshape(-1, _GRAIN)
        )
        for first, last in _runs(changed):
            self._add_trimmed(before, after, _GRAIN * first, _GRAIN * last)
        if not np.array_equal(before[whole:], after[whole:]):
            self._add_trimmed(before, after, whole, before.size)
        self._position += 4 * before.size

    def _add_trimmed(self, before: Bits, after: Bits, start: int, end: int) -> None:
        """Add a run of changed rows without what is unchanged at its beginning and at its end.

        So small weights that alone are trained, as adapters are, cost no more than their bytes.
        """
        head = slice(start, min(start + _GRAIN, end))
        tail = slice(max(start, end - _GRAIN), end)
        first = start + int(np.argmax(before[head] != after[head]))
        last = end - int(np.argmax((before[tail] != after[tail])[::-1]))
        self._add(4 * first, 4 * (last - first))

    def _add(self, offset: int, size: int) -> None:
        start = self._position + offset
        if self._ranges and self._ranges[-1][1] == start:
            self._ranges[-1] = (self._ranges[-1][0], start + size)
        else:
            self._ranges.append((start, start + size))
        self._left -= size

    def found(self, size: int) -> tuple[Range, ...] | None:
        """Return the changed ranges of the file of ``size`` bytes; None where they are no use."""
        if self._left < 0:
            return None
        ranges = coalesced(self._ranges)
        return tuple(ranges) if saves_enough(ranges, size) else None


def _changed_rows(before: Bits, after: Bits) -> npt.NDArray[np.bool_]:
    """Return which rows differ; where their first values do, the rest is not looked at."""
    changed: npt.NDArray[np.bool_] = before[:, 0] != after[:, 0]
    return changed if changed.all() else (before != after).any(axis=1)


def _runs(changed: npt.NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Yield the first and the end of each run of rows that changed."""
    edges = np.flatnonzero(np.diff(changed, prepend=False, append=False))
    for first, last in zip(edges[::2], edges[1::2], strict=True):
        yield int(first), int(last)
