"""Patches: a file made of an earlier version and of the byte ranges that changed. No numpy.

The new file is written from its first byte to its last, so that a cut always leaves its beginning,
and whoever continues need not know which bytes were copied and which downloaded. No byte is
verified here: the hash of the whole file is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, TypeAlias

Range: TypeAlias = tuple[int, int]
"""The bytes from the first position up to, but not at, the second."""

MAX_RANGES = 256
MAX_SHARE = 0.75
"""The largest part of a file to download by ranges; above it the whole is downloaded."""
_BLOCK_BYTES = 1 << 20


def coalesced(ranges: Iterable[Range], *, gap: int = 0, most: int = MAX_RANGES) -> list[Range]:
    """Return at most ``most`` ranges, in order and not touching, that cover the given ones.

    Args:
        gap: ranges that are not farther apart are joined.
        most: where there are more, the closest are joined.
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
    """Return how many bytes the ranges have together, where none overlap."""
    return sum(end - start for start, end in ranges)


def saves_enough(ranges: Sequence[Range], size: int) -> bool:
    """Whether to download ranges of a file of ``size`` bytes instead of the whole."""
    return length(ranges) <= MAX_SHARE * size


def are_valid(ranges: Sequence[Range], size: int) -> bool:
    """Whether the ranges are in order, apart, not empty, and within ``size`` bytes."""
    flat = [0, *(position for each in ranges for position in each), size]
    return all(before <= after for before, after in pairwise(flat)) and all(
        start < end for start, end in ranges
    )


@dataclass(frozen=True)
class EarlierVersion:
    """An earlier version of a file, and the ranges in which the wanted version differs."""

    path: Path
    changed: Sequence[Range]


class EarlierReader:
    """Reads the bytes of the wanted file that an earlier version has."""

    def __init__(self, file: BinaryIO, changed: Sequence[Range], size: int) -> None:
        self._file = file
        self._changed = changed
        self._size = size
        self._failed = False

    def read_unchanged(self, position: int) -> Iterator[bytes]:
        """Yield the unchanged bytes from ``position`` on, up to the next byte to download."""
        left = self._next(position)[0] - position
        while left > 0 and not self._failed:
            block = self._read(position, min(left, _BLOCK_BYTES))
            position += len(block)
            left -= len(block)
            yield block

    def fetch_until(self, position: int) -> int:
        """Return the end of the bytes to download at ``position``: itself where there are none."""
        if self._failed:
            return self._size
        start, end = self._next(position)
        return end if start <= position else position

    def _next(self, position: int) -> Range:
        """Return the first range that ends after ``position``, an empty one at the file's end."""
        later = (each for each in self._changed if each[1] > position)
        return next(later, (self._size, self._size))

    def _read(self, position: int, size: int) -> bytes:
        """Return the next bytes; after a failure everything is to be downloaded."""
        try:
            self._file.seek(position)
            block = self._file.read(size)
        except OSError:
            block = b""
        self._failed = not block
        return block


@contextmanager
def open_earlier(earlier: EarlierVersion | None, size: int) -> Iterator[EarlierReader | None]:
    """Open an earlier version for a file of ``size`` bytes; None where it is not usable."""
    if earlier is None or not are_valid(earlier.changed, size):
        yield None
        return
    try:
        file = earlier.path.open("rb")
    except OSError:
        yield None
        return
    with file:
        yield EarlierReader(file, earlier.changed, size)
