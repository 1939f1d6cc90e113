"""Patches: which bytes of a file differ from an earlier one, and the file made of both. No numpy.

The new file is made from its first byte to its last, of bytes that are here and bytes that are
fetched, so that what a cut leaves is always its beginning, and whoever goes on need not know how it
came about. Nothing here vouches for a byte: the whole file's hash does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, TypeAlias

Range: TypeAlias = tuple[int, int]
"""The bytes from the first up to but without the second."""

MAX_RANGES = 256
MAX_SHARE = 0.75
"""Of the file: who must fetch more than this fetches it whole."""
_BLOCK_BYTES = 1 << 20


def coalesced(ranges: Iterable[Range], *, gap: int = 0, most: int = MAX_RANGES) -> list[Range]:
    """Return at most ``most`` ranges, in order and apart, that cover the given ones.

    Args:
        gap: what lies between two ranges is taken in where it is not longer.
        most: beyond it the shortest gaps are taken in.
    """
    merged: list[Range] = []
    for start, end in sorted(ranges):
        if merged and start <= merged[-1][1] + gap:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    if len(merged) <= most:
        return merged
    gaps = sorted(after[0] - before[1] for before, after in pairwise(merged))
    return coalesced(merged, gap=gaps[len(merged) - most - 1], most=most)


def length(ranges: Iterable[Range]) -> int:
    """Return how many bytes ranges that are apart have together."""
    return sum(end - start for start, end in ranges)


def is_worth_it(ranges: Sequence[Range], size: int) -> bool:
    """Whether to fetch ranges of a file of ``size`` bytes and not the whole."""
    return length(ranges) <= MAX_SHARE * size


def are_sound(ranges: Sequence[Range], size: int) -> bool:
    """Whether the ranges are in order, apart, not empty, and within ``size`` bytes."""
    flat = [0, *(place for each in ranges for place in each), size]
    return all(before <= after for before, after in pairwise(flat)) and all(
        start < end for start, end in ranges
    )


@dataclass(frozen=True)
class Earlier:
    """An earlier file that is here, and the ranges of the wanted file that differ from it."""

    path: Path
    changed: Sequence[Range]


class Source:
    """The bytes of the wanted file that an earlier one has."""

    def __init__(self, file: BinaryIO, changed: Sequence[Range], size: int) -> None:
        self._file = file
        self._changed = changed
        self._size = size
        self._useless = False

    def unchanged(self, position: int) -> Iterator[bytes]:
        """Yield what is here from ``position`` on, up to the next byte that must be fetched."""
        left = self._next(position)[0] - position
        while left > 0 and not self._useless:
            block = self._read(position, min(left, _BLOCK_BYTES))
            position += len(block)
            left -= len(block)
            yield block

    def fetch_until(self, position: int) -> int:
        """Return up to which byte to fetch from ``position`` on: itself where none is missing."""
        if self._useless:
            return self._size
        start, end = self._next(position)
        return end if start <= position else position

    def _next(self, position: int) -> Range:
        """Return the first range that ends behind ``position``, an empty one at the file's end."""
        behind = (each for each in self._changed if each[1] > position)
        return next(behind, (self._size, self._size))

    def _read(self, position: int, size: int) -> bytes:
        """Read on; after a failure everything is to be fetched."""
        try:
            self._file.seek(position)
            block = self._file.read(size)
        except OSError:
            block = b""
        self._useless = not block
        return block


@contextmanager
def opened(earlier: Earlier | None, size: int) -> Iterator[Source | None]:
    """Within the block, the earlier file as a source for one of ``size`` bytes; None if unfit."""
    if earlier is None or not are_sound(earlier.changed, size):
        yield None
        return
    try:
        file = earlier.path.open("rb")
    except OSError:
        yield None
        return
    with file:
        yield Source(file, earlier.changed, size)
