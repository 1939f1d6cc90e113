"""A round's sums, one for each name that updates have.

Of a small model they are in memory, update by update; of a large one they are made block by block.

A large model's updates stay in their spools until the next version is made: then each block is read
from all of them, summed, and written out. Only where more updates come than may wait are those that
wait added to sums in a file, in one pass for all, so that the disk holds a bounded number.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from algorithms.base import BLOCK
from fl_server.aggregation.arithmetic.exact import BlockSum, Float64s, Int64s, Workspace
from fl_server.aggregation.arithmetic.server_half import mean_of
from fl_server.aggregation.kept_updates import KeptUpdates
from fl_server.aggregation.part_values import CoveredPart, ScatteredPart
from fl_server.aggregation.spool import BlockSums, Spool, Values, blocks_of
from storage.updates.info import Section
from storage.weights import Slices

MEMORY_SUMS_MAX = 1 << 24
LIMBS_IN_MEMORY = 2
"""A small model's sum takes 8 or 16 bytes a value in memory; most need 8. The rest is in a file."""
WAITING_MAX = 4


COVERAGE = "coverage-"
"""Begins the name of the sum of the weights of a vector's coordinates, where it is told of."""


class OthersSum(Protocol):
    """A sum of updates that another server has made.

    Attributes:
        size: how many values it has.
    """

    size: int

    def add_to(self, block: BlockSum, start: int, work: Workspace) -> None:
        """Add the block that begins at ``start`` to its sum."""
        ...

    def close(self) -> None:
        """Give back what it takes."""
        ...


class VectorSum(Protocol):
    """The exact weighted sum of one vector of a round's updates."""

    @property
    def weight(self) -> int:
        """The weights of all updates together."""
        ...

    def add(self, part: Values, weight: int) -> None:
        """Add an update's vector; the part is this sum's to close.

        After an error the sum is of no use.
        """
        ...

    def merge(self, part: OthersSum, weight: int) -> None:
        """Add a sum of other updates, of that weight; see ``add``."""
        ...

    def total(self, start: int) -> Float64s:
        """Return the sum of the block of ``BLOCK`` values, or what is left, from ``start`` on."""
        ...

    def integers(self, start: int) -> tuple[int, list[Int64s]]:
        """Return the sum of the block from ``start`` on; see ``BlockSum.integers``."""
        ...

    def close(self) -> None:
        """Give memory and disk back."""
        ...


@dataclass(frozen=True)
class UpdateParts:
    """What an update's values are.

    Attributes:
        sections: what the values are, in order.
        device_id: whose it is, for what is kept singly.
        slices: which part of the covered vectors the update has; None: the whole.
    """

    sections: Sequence[Section]
    device_id: str = ""
    slices: Slices | None = None


class RoundSums:
    """The sums of one round: each name's is over the updates that have it.

    Args:
        updates: how many are expected.
        folder: where that lies which memory should not hold.
        covered: the vectors of which an update may have a part: each has a second sum, of the
            weights of the updates that have a coordinate, and its mean is over those.
        kept_singly: the names of which every update's vector is kept instead of a sum.
    """

    def __init__(
        self,
        updates: int,
        folder: Path,
        covered: Collection[str] = (),
        kept_singly: Collection[str] = (),
    ) -> None:
        self._updates = updates
        self._folder = folder
        self._covered = frozenset(covered)
        self._kept_singly = frozenset(kept_singly)
        self._sums: dict[str, VectorSum] = {}
        self._sizes: dict[str, int] = {}
        self._coverage: dict[str, VectorSum] = {}
        self._singles: dict[str, KeptUpdates] = {}

    def add(self, spool: Spool, has: UpdateParts, weight: int) -> None:
        """Add an update; the spool is these sums' to close. After an error they are of no use."""
        try:
            for name, part in spool.parts(has.sections).items():
                if name in self._kept_singly:
                    self._singles_of(name, part.size).add(has.device_id, part)
                    continue
                values: Values = part
                if name in self._covered:
                    size = part.size if has.slices is None else has.slices.layout.size
                    covers = CoveredPart(size, has.slices)
                    self._sum(self._coverage, name, size).add(covers, weight)
                    values = part if has.slices is None else ScatteredPart(part, has.slices)
                self._sum(self._sums, name, values.size).add(values, weight)
        except BaseException:
            spool.close()
            raise

    def add_sums(self, parts: Mapping[str, OthersSum], weights: Mapping[str, int]) -> None:
        """Add sums of other updates, which are these sums' to close, by name."""
        for name, part in parts.items():
            bare = name.removeprefix(COVERAGE)
            sums = self._sums if bare == name else self._coverage
            self._sum(sums, bare, part.size).merge(part, weights[name])

    @property
    def exact(self) -> dict[str, tuple[int, VectorSum]]:
        """What there are exact sums of by name, in order, with the number of values of each."""
        covers = {f"{COVERAGE}{name}": each for name, each in self._coverage.items()}
        found = {**self._sums, **covers}
        return {
            name: (self._sizes[name.removeprefix(COVERAGE)], found[name]) for name in sorted(found)
        }

    def _sum(self, sums: dict[str, VectorSum], name: str, size: int) -> VectorSum:
        self._sizes[name] = size
        if name not in sums:
            sums[name] = sum_for(size, self._updates, self._folder)
        return sums[name]

    def _singles_of(self, name: str, size: int) -> KeptUpdates:
        if name not in self._singles:
            self._singles[name] = KeptUpdates(size, self._folder)
        return self._singles[name]

    def singles(self, name: str) -> KeptUpdates | None:
        """Return every update's vector of that name, None where a sum is kept of it, or none."""
        return self._singles.get(name)

    def __contains__(self, name: str) -> bool:
        return name in self._sums or name in self._singles

    def coverage(self, name: str, start: int, count: int) -> Float64s:
        """Return a block of the weights of the updates that have each coordinate."""
        found = self._coverage.get(name)
        return np.zeros(count) if found is None else found.total(start)

    def mean(self, name: str, start: int, count: int) -> Float64s:
        """Return a block of a name's mean, zeros where no update has it.

        Args:
            start: a multiple of ``BLOCK``.
            count: ``BLOCK`` values, or what is left.

        Raises:
            Corrupt: the weights of the updates that have it are 0.
        """
        return mean_of(self._sums.get(name), self._coverage.get(name), start, count)

    def close(self) -> None:
        """Give memory and disk back."""
        for each in (*self._sums.values(), *self._coverage.values()):
            each.close()
        for updates in self._singles.values():
            updates.close()


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
        self.weight = 0

    def add(self, part: Values, weight: int) -> None:
        """See :class:`VectorSum`."""
        with closing(part):
            for start, values in blocks_of(part):
                index = start // BLOCK
                block = self._sums.read(index)
                block.add(values, weight, self._work)
                self._sums.write(index, block)
        self.weight += weight

    def merge(self, part: OthersSum, weight: int) -> None:
        """See :class:`VectorSum`."""
        with closing(part):
            for index in range(len(self._sums)):
                block = self._sums.read(index)
                part.add_to(block, BLOCK * index, self._work)
                self._sums.write(index, block)
        self.weight += weight

    def total(self, start: int) -> Float64s:
        """See :class:`VectorSum`."""
        return self._sums.read(start // BLOCK).total()

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
        self._size = size
        self._sums = BlockSums(size, updates, 0, folder)
        self._work = Workspace(min(BLOCK, size))
        self._waiting: list[tuple[Values, int]] = []
        self._waiting_sums: list[OthersSum] = []
        self.weight = 0

    def add(self, part: Values, weight: int) -> None:
        """See :class:`VectorSum`."""
        self._waiting.append((part, weight))
        self.weight += weight
        self._add_if_many()

    def merge(self, part: OthersSum, weight: int) -> None:
        """See :class:`VectorSum`."""
        self._waiting_sums.append(part)
        self.weight += weight
        self._add_if_many()

    def _add_if_many(self) -> None:
        if len(self._waiting) + len(self._waiting_sums) > WAITING_MAX:
            for index in range(len(self._sums)):
                self._sums.write(index, self._sum_of(index))
            self._close_waiting()

    def total(self, start: int) -> Float64s:
        """See :class:`VectorSum`."""
        return self._sum_of(start // BLOCK).total()

    def integers(self, start: int) -> tuple[int, list[Int64s]]:
        """See :class:`VectorSum`."""
        return self._sum_of(start // BLOCK).integers()

    def close(self) -> None:
        """See :class:`VectorSum`."""
        self._close_waiting()
        self._sums.close()

    def _sum_of(self, index: int) -> BlockSum:
        block, start = self._sums.read(index), BLOCK * index
        for part, weight in self._waiting:
            values = part.read(start, min(BLOCK, self._size - start))
            block.add(values, weight, self._work)
        for each in self._waiting_sums:
            each.add_to(block, start, self._work)
        return block

    def _close_waiting(self) -> None:
        for part, _ in self._waiting:
            part.close()
        for each in self._waiting_sums:
            each.close()
        self._waiting, self._waiting_sums = [], []
