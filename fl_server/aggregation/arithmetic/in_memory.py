"""A round's sums and its next version where all of it is in memory: no files, no store."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from algorithms.base import BLOCK, Algorithm, Scalars
from fl_server.aggregation.arithmetic.exact import BlockSum, Float32s, Float64s, Workspace
from fl_server.aggregation.arithmetic.server_half import (
    Block,
    ServerHalf,
    VersionInput,
    kept_vectors,
    mean_of,
)
from fl_server.aggregation.arithmetic.single_updates import SingleUpdates
from storage.weights import Slices, Weights


class VectorsSum:
    """The exact weighted sum of vectors of one length."""

    def __init__(self, size: int, updates: int) -> None:
        self.weight = 0
        self._work = Workspace(min(BLOCK, size))
        self._blocks = [
            BlockSum(min(BLOCK, size - start), updates) for start in range(0, size, BLOCK)
        ]

    def add(self, vectors: Sequence[Float32s], weights: Sequence[int]) -> None:
        """Add the vectors, all of them finite, each with its weight."""
        for index, block in enumerate(self._blocks):
            start = index * BLOCK
            rows = np.stack([vector[start : start + block.count] for vector in vectors])
            block.add_all(rows, weights, self._work)
        self.weight += sum(weights)

    def total(self, start: int) -> Float64s:
        """Return the sum of the block of ``BLOCK`` values, or what is left, from ``start`` on."""
        return self._blocks[start // BLOCK].total()


class MemoryUpdates(SingleUpdates):
    """One vector of each update, by device."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.by_device: dict[str, Float32s] = {}

    @property
    def devices(self) -> list[str]:
        """See :class:`SingleUpdates`."""
        return sorted(self.by_device)

    def read(self, start: int, count: int) -> Float32s:
        """See :class:`SingleUpdates`."""
        return np.stack([self.by_device[each][start : start + count] for each in self.devices])


class MemorySums:
    """The sums of one round: each name's is over the updates that have it.

    Args:
        updates: how many are expected.
        covered: the vectors of which an update may have a part: each has a second sum, of the
            weights of the updates that have a coordinate, and its mean is over those.
        kept_singly: the names of which every update's vector is kept instead of a sum.
    """

    def __init__(
        self,
        updates: int,
        covered: Collection[str] = (),
        kept_singly: frozenset[str] = frozenset(),
    ) -> None:
        self._updates = updates
        self._covered = frozenset(covered)
        self._kept_singly = kept_singly
        self._sums: dict[str, VectorsSum] = {}
        self._coverage: dict[str, VectorsSum] = {}
        self._singles: dict[str, MemoryUpdates] = {}

    def keep(self, device_id: str, update: Mapping[str, Float32s]) -> Mapping[str, Float32s]:
        """Keep what is kept singly of an update; return the rest, which is to be added."""
        if not self._kept_singly:
            return update
        for name in self._kept_singly.intersection(update):
            kept = self._singles.setdefault(name, MemoryUpdates(update[name].size))
            kept.by_device[device_id] = update[name]
        return {name: update[name] for name in update if name not in self._kept_singly}

    def singles(self, name: str) -> MemoryUpdates | None:
        """Return every update's vector of that name, None where a sum is kept of it, or none."""
        return self._singles.get(name)

    def add(
        self,
        updates: Sequence[Mapping[str, Float32s]],
        weights: Sequence[int],
        parts: Sequence[Slices | None] = (),
    ) -> None:
        """Add updates, as vectors by name, each with its weight.

        Args:
            parts: which part of the covered vectors each update has, None for the whole; nothing
                where all have the whole.
        """
        values: dict[str, tuple[list[Float32s], list[int]]] = {}
        ones: dict[str, tuple[list[Float32s], list[int]]] = {}
        for update, weight, slices in zip(
            updates, weights, parts or [None] * len(updates), strict=True
        ):
            for name, vector in update.items():
                if name in self._covered:
                    _append(ones, name, _whole_of(np.ones_like(vector), slices), weight)
                    _append(values, name, _whole_of(vector, slices), weight)
                else:
                    _append(values, name, vector, weight)
        for sums, found in ((self._sums, values), (self._coverage, ones)):
            for name, (vectors, its_weights) in found.items():
                if name not in sums:
                    sums[name] = VectorsSum(len(vectors[0]), self._updates)
                sums[name].add(vectors, its_weights)

    def __contains__(self, name: str) -> bool:
        return name in self._sums or name in self._singles

    def mean(self, name: str, start: int, count: int) -> Float64s:
        """Return a block of a name's mean, zeros where no update has it.

        Raises:
            Corrupt: the weights of the updates that have it are 0.
        """
        return mean_of(self._sums.get(name), self._coverage.get(name), start, count)

    def coverage(self, name: str, start: int, count: int) -> Float64s:
        """Return a block of the weights of the updates that have each coordinate."""
        found = self._coverage.get(name)
        return np.zeros(count) if found is None else found.total(start)


@dataclass(frozen=True, eq=False)
class MemoryVersion:
    """One version of a model in memory, with the server's vectors and scalars.

    Nothing of it is changed once it is made. The vectors are empty before the first round: clients
    and server then make them of the weights and the run's seed.
    """

    weights: Weights
    vectors: Mapping[str, Float32s] = field(default_factory=dict)
    scalars: Scalars = field(default_factory=dict)


def next_version(base: MemoryVersion, algorithm: Algorithm, given: VersionInput) -> MemoryVersion:
    """Return the version that a round makes of ``base``.

    Raises:
        Corrupt: the weights of all updates are 0.
        NotFinite: a value of it would not be finite.
    """
    half, old = ServerHalf(algorithm, given), base.weights
    is_first = not base.vectors

    def blocks() -> Iterator[Block]:
        for start in range(0, old.layout.size, BLOCK):
            weights = old.vector[start : start + BLOCK]
            kept = {name: each[start : start + BLOCK] for name, each in base.vectors.items()}
            yield start, weights, half.init(weights, start) if is_first else kept

    scalars = half.advance(blocks)
    parts: list[Float32s] = []
    kept: dict[str, list[Float32s]] = {}
    for block in blocks():
        values, after = half.next_block(block, scalars, old.layout)
        parts.append(values)
        for name, vector in kept_vectors(after).items():
            kept.setdefault(name, []).append(vector)
    vectors = {name: _whole(each) for name, each in kept.items()}
    return MemoryVersion(old.with_vector(_whole(parts)), vectors, scalars)


def _append(
    found: dict[str, tuple[list[Float32s], list[int]]], name: str, vector: Float32s, weight: int
) -> None:
    vectors, weights = found.setdefault(name, ([], []))
    vectors.append(vector)
    weights.append(weight)


def _whole_of(vector: Float32s, slices: Slices | None) -> Float32s:
    """Return a part's values at their places in the whole, zeros elsewhere."""
    if slices is None:
        return vector
    whole = np.zeros(slices.layout.size, np.float32)
    slices.put(vector, whole)
    return whole


def _whole(parts: Sequence[Float32s]) -> Float32s:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
