"""A round's sums, one for each name that updates have.

Of a small model they are in memory, update by update; of a large one they are made block by block.

A large model's updates stay in their spools until the next version is made: then each block is read
from all of them, summed, and written out. Only where more updates come than may wait are those that
wait added to sums in a file, in one pass for all, so that the disk holds a bounded number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Protocol

import numpy as np

from algorithms.base import BLOCK
from fl_server.aggregation.arithmetic.exact import BlockSum, Float64s, Int64s, Workspace
from fl_server.aggregation.spool import BlockSums, Spool
from runtime.errors import Corrupt
from storage.updates.info import Section

MEMORY_SUMS_MAX = 1 << 24
LIMBS_IN_MEMORY = 2
"""A small model's sum takes 8 or 16 bytes a value in memory; most need 8. The rest is in a file."""
WAITING_MAX = 4


class Addend(Protocol):
    """What is added to the sum of a vector: an update's vector, or a sum of others'.

    Attributes:
        size: how many values it has.
    """

    size: int

    def add_to(self, block: BlockSum, start: int, weight: int, work: Workspace) -> None:
        """Add the block that begins at ``start`` to its sum."""
        ...

    def close(self) -> None:
        """Give memory and disk back."""
        ...


class VectorSum(Protocol):
    """The exact weighted sum of one vector of a round's updates.

    Attributes:
        total_weight: of all that was added.
    """

    total_weight: int

    def add(self, part: Addend, weight: int) -> None:
        """Add an update's vector; the part is this sum's to close.

        After an error the sum is of no use.
        """
        ...

    def mean(self, start: int) -> Float64s:
        """Return the mean of the block of ``BLOCK`` values, or what is left, from ``start`` on.

        Raises:
            Corrupt: the updates' weights are 0.
        """
        ...

    def integers(self, start: int) -> tuple[int, list[Int64s]]:
        """Return the sum of the block from ``start`` on; see ``BlockSum.integers``."""
        ...

    def close(self) -> None:
        """Give memory and disk back."""
        ...


class RoundSums:
    """The sums of one round: each name's is over the updates that have it.

    Args:
        updates: how many are expected.
        folder: where that lies which memory should not hold.
    """

    def __init__(self, updates: int, folder: Path) -> None:
        self._updates = updates
        self._folder = folder
        self._sums: dict[str, VectorSum] = {}
        self._sizes: dict[str, int] = {}

    def add(self, spool: Spool, sections: Sequence[Section], weight: int) -> None:
        """Add an update; the spool is these sums' to close. After an error they are of no use."""
        try:
            for name, part in spool.parts(sections).items():
                self._add(name, part, weight)
        except BaseException:
            spool.close()
            raise

    def add_sums(self, parts: Mapping[str, Addend], weights: Mapping[str, int]) -> None:
        """Add sums of other updates, which are these sums' to close, by name."""
        for name, part in parts.items():
            self._add(name, part, weights[name])

    def _add(self, name: str, part: Addend, weight: int) -> None:
        if name not in self._sums:
            self._sizes[name] = part.size
            self._sums[name] = sum_for(part.size, self._updates, self._folder)
        self._sums[name].add(part, weight)

    @property
    def names(self) -> list[str]:
        """What there are sums of, sorted."""
        return sorted(self._sums)

    def size(self, name: str) -> int:
        """Return how many values a name's sum has."""
        return self._sizes[name]

    def weight(self, name: str) -> int:
        """Return the weight of all updates that have a name."""
        return self._sums[name].total_weight

    def integers(self, name: str, start: int) -> tuple[int, list[Int64s]]:
        """Return a block of a name's sum; see ``BlockSum.integers``."""
        return self._sums[name].integers(start)

    def __contains__(self, name: str) -> bool:
        return name in self._sums

    def mean(self, name: str, start: int, count: int) -> Float64s:
        """Return a block of a name's mean, zeros where no update has it.

        Args:
            start: a multiple of ``BLOCK``.
            count: ``BLOCK`` values, or what is left.

        Raises:
            Corrupt: the weights of the updates that have it are 0.
        """
        found = self._sums.get(name)
        return np.zeros(count) if found is None else found.mean(start)

    def close(self) -> None:
        """Give memory and disk back."""
        for each in self._sums.values():
            each.close()


def sum_for(size: int, updates: int, folder: Path) -> VectorSum:
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
        self.total_weight = 0

    def add(self, part: Addend, weight: int) -> None:
        """See :class:`VectorSum`."""
        with closing(part):
            for index in range(len(self._sums)):
                block = self._sums.read(index)
                part.add_to(block, BLOCK * index, weight, self._work)
                self._sums.write(index, block)
        self.total_weight += weight

    def mean(self, start: int) -> Float64s:
        """See :class:`VectorSum`."""
        return _mean(self._sums.read(start // BLOCK), self.total_weight)

    def integers(self, start: int) -> tuple[int, list[Int64s]]:
        """See :class:`VectorSum`."""
        return self._sums.read(start // BLOCK).integers()

    def close(self) -> None:
        """See :class:`VectorSum`."""
        self._sums.close()


class LargeSum:
    """A block in memory, whatever the model's size; the others in a file, where there need be one.

    An update waits in its spool, ``WAITING_MAX`` of them at most: then all are added in one pass.
    """

    def __init__(self, size: int, updates: int, folder: Path) -> None:
        self._sums = BlockSums(size, updates, 0, folder)
        self._work = Workspace(min(BLOCK, size))
        self._waiting: list[tuple[Addend, int]] = []
        self.total_weight = 0

    def add(self, part: Addend, weight: int) -> None:
        """See :class:`VectorSum`."""
        self._waiting.append((part, weight))
        self.total_weight += weight
        if len(self._waiting) > WAITING_MAX:
            for index in range(len(self._sums)):
                self._sums.write(index, self._sum_of(index))
            self._close_waiting()

    def mean(self, start: int) -> Float64s:
        """See :class:`VectorSum`."""
        return _mean(self._sum_of(start // BLOCK), self.total_weight)

    def integers(self, start: int) -> tuple[int, list[Int64s]]:
        """See :class:`VectorSum`."""
        return self._sum_of(start // BLOCK).integers()

    def close(self) -> None:
        """See :class:`VectorSum`."""
        self._close_waiting()
        self._sums.close()

    def _sum_of(self, index: int) -> BlockSum:
        block = self._sums.read(index)
        for part, weight in self._waiting:
            part.add_to(block, BLOCK * index, weight, self._work)
        return block

    def _close_waiting(self) -> None:
        for part, _ in self._waiting:
            part.close()
        self._waiting = []


def _mean(block: BlockSum, total_weight: int) -> Float64s:
    if total_weight <= 0:
        raise Corrupt("the weights of all updates are 0")
    mean: Float64s = block.total() / float(total_weight)
    return mean
