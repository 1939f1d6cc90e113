"""A round's sum: of a small model in memory, update by update; of a large one block by block.

A large model's updates stay in their spools until the next version is made: then each block is read
from all of them, summed, and written out. Only where more updates come than may wait are those that
wait added to sums in a file, in one pass for all, so that the disk holds a bounded number.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Protocol

from fl_server.aggregation.arithmetic.exact import (
    BLOCK,
    ExactSum,
    FixedPoint,
    Float64s,
    Int64s,
    MemorySums,
)
from fl_server.aggregation.spool import FileSums, Spool

MEMORY_SUMS_MAX = 1 << 24
WAITING_MAX = 4


class RoundSum(Protocol):
    """The exact weighted sum of the updates of one round."""

    def add(self, spool: Spool, weight: int) -> None:
        """Add an update; the spool is this sum's to close.

        After an error the sum is of no use.
        """
        ...

    def mean(self, start: int, count: int) -> Float64s:
        """Return the mean of a block of at most ``BLOCK`` values."""
        ...

    def close(self) -> None:
        """Give memory and disk back."""
        ...


def sum_for(size: int, fixed: FixedPoint, folder: Path) -> RoundSum:
    """Return an empty sum of vectors of that size."""
    if size <= MEMORY_SUMS_MAX:
        return SmallSum(size, fixed)
    return LargeSum(size, fixed, folder)


class SmallSum:
    """Eight bytes a parameter in memory; an update is added as it comes."""

    def __init__(self, size: int, fixed: FixedPoint) -> None:
        self._sum = ExactSum(size, fixed, MemorySums(size))

    def add(self, spool: Spool, weight: int) -> None:
        """See :class:`RoundSum`."""
        with closing(spool):
            for start, values in spool.blocks():
                self._sum.add_block(start, values, weight)
        self._sum.total_weight += weight

    def mean(self, start: int, count: int) -> Float64s:
        """See :class:`RoundSum`."""
        return self._sum.mean(start, count)

    def close(self) -> None:
        """See :class:`RoundSum`."""


class LargeSum:
    """A block in memory, whatever the model's size.

    Args:
        folder: where the sums go when more than ``WAITING_MAX`` updates come.
    """

    def __init__(self, size: int, fixed: FixedPoint, folder: Path) -> None:
        self._size = size
        self._folder = folder
        self._block = MemorySums(min(BLOCK, size))
        self._sum = ExactSum(min(BLOCK, size), fixed, self._block)
        self._waiting: list[tuple[Spool, int]] = []
        self._file: FileSums | None = None

    def add(self, spool: Spool, weight: int) -> None:
        """See :class:`RoundSum`."""
        self._waiting.append((spool, weight))
        self._sum.total_weight += weight
        if len(self._waiting) > WAITING_MAX:
            self._gather()

    def mean(self, start: int, count: int) -> Float64s:
        """See :class:`RoundSum`."""
        self._sums_of(start, count)
        return self._sum.mean(0, count)

    def close(self) -> None:
        """See :class:`RoundSum`."""
        for spool, _ in self._waiting:
            spool.close()
        self._waiting = []
        if self._file is not None:
            self._file.close()
            self._file = None

    def _sums_of(self, start: int, count: int) -> Int64s:
        sums = self._block.read(0, count)
        sums[:] = 0 if self._file is None else self._file.read(start, count)
        for spool, weight in self._waiting:
            self._sum.add_block(0, spool.read(start, count), weight)
        return sums

    def _gather(self) -> None:
        """Add those that wait to the sums in the file, which begin as zeros."""
        file = self._file or FileSums(self._size, self._folder)
        self._file = file
        for start in range(0, self._size, BLOCK):
            count = min(BLOCK, self._size - start)
            file.write(start, self._sums_of(start, count))
        for spool, _ in self._waiting:
            spool.close()
        self._waiting = []
