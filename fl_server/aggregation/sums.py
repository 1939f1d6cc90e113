"""A round's sum: of a small model in memory, update by update; of a large one block by block.

A large model's updates stay in their spools until the next version is made: then each block is read
from all of them, summed, and written out. Only where more updates come than may wait are those that
wait added to sums in a file, in one pass for all, so that the disk holds a bounded number.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Protocol

from fl_server.aggregation.arithmetic.exact import BLOCK, BlockSum, Float64s, Workspace
from fl_server.aggregation.spool import BlockSums, Spool

MEMORY_SUMS_MAX = 1 << 24
LIMBS_IN_MEMORY = 2
"""A small model's sum takes 8 or 16 bytes a value in memory; most need 8. The rest is in a file."""
WAITING_MAX = 4


class RoundSum(Protocol):
    """The exact weighted sum of the updates of one round."""

    def add(self, spool: Spool, weight: int) -> None:
        """Add an update; the spool is this sum's to close.

        After an error the sum is of no use.
        """
        ...

    def mean(self, start: int) -> Float64s:
        """Return the mean of the block of ``BLOCK`` values, or what is left, from ``start`` on.

        Raises:
            ValueError: the updates' weights are 0.
        """
        ...

    def close(self) -> None:
        """Give memory and disk back."""
        ...


def sum_for(size: int, updates: int, folder: Path) -> RoundSum:
    """Return an empty sum of vectors of that size.

    Args:
        updates: how many are expected.
        folder: where that lies which memory should not hold.
    """
    if size <= MEMORY_SUMS_MAX:
        return SmallSum(size, updates, folder)
    return LargeSum(size, updates, folder)


class SmallSum:
    """A sum in memory; an update is added as it comes."""

    def __init__(self, size: int, updates: int, folder: Path) -> None:
        self._sums = BlockSums(size, updates, LIMBS_IN_MEMORY, folder)
        self._work = Workspace(min(BLOCK, size))
        self._total_weight = 0

    def add(self, spool: Spool, weight: int) -> None:
        """See :class:`RoundSum`."""
        with closing(spool):
            for start, values in spool.blocks():
                index = start // BLOCK
                block = self._sums.read(index)
                block.add(values, weight, self._work)
                self._sums.write(index, block)
        self._total_weight += weight

    def mean(self, start: int) -> Float64s:
        """See :class:`RoundSum`."""
        return _mean(self._sums.read(start // BLOCK), self._total_weight)

    def close(self) -> None:
        """See :class:`RoundSum`."""
        self._sums.close()


class LargeSum:
    """A block in memory, whatever the model's size; the others in a file, where there need be one.

    An update waits in its spool, ``WAITING_MAX`` of them at most: then all are added in one pass.
    """

    def __init__(self, size: int, updates: int, folder: Path) -> None:
        self._size = size
        self._sums = BlockSums(size, updates, 0, folder)
        self._work = Workspace(min(BLOCK, size))
        self._waiting: list[tuple[Spool, int]] = []
        self._total_weight = 0

    def add(self, spool: Spool, weight: int) -> None:
        """See :class:`RoundSum`."""
        self._waiting.append((spool, weight))
        self._total_weight += weight
        if len(self._waiting) > WAITING_MAX:
            for index in range(len(self._sums)):
                self._sums.write(index, self._sum_of(index))
            self._close_waiting()

    def mean(self, start: int) -> Float64s:
        """See :class:`RoundSum`."""
        return _mean(self._sum_of(start // BLOCK), self._total_weight)

    def close(self) -> None:
        """See :class:`RoundSum`."""
        self._close_waiting()
        self._sums.close()

    def _sum_of(self, index: int) -> BlockSum:
        block, start = self._sums.read(index), BLOCK * index
        for spool, weight in self._waiting:
            values = spool.read(start, min(BLOCK, self._size - start))
            block.add(values, weight, self._work)
        return block

    def _close_waiting(self) -> None:
        for spool, _ in self._waiting:
            spool.close()
        self._waiting = []


def _mean(block: BlockSum, total_weight: int) -> Float64s:
    if total_weight <= 0:
        raise ValueError("the total weight must be positive")
    mean: Float64s = block.total() / float(total_weight)
    return mean
