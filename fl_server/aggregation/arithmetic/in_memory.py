"""A round's sums and its next version where all of it is in memory: no files, no store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from algorithms.base import BLOCK, Algorithm, Scalars
from fl_server.aggregation.arithmetic.exact import BlockSum, Float32s, Float64s, Workspace
from fl_server.aggregation.arithmetic.server_half import (
    Block,
    RoundFigures,
    ServerHalf,
    kept_vectors,
)
from runtime.errors import Corrupt
from storage.weights import Weights


class VectorsSum:
    """The exact weighted sum of vectors of one length."""

    def __init__(self, size: int, updates: int) -> None:
        self.total_weight = 0
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
        self.total_weight += sum(weights)

    def mean(self, start: int) -> Float64s:
        """Return the mean of the block of ``BLOCK`` values, or what is left, from ``start`` on."""
        if self.total_weight <= 0:
            raise Corrupt("the weights of all updates are 0")
        mean: Float64s = self._blocks[start // BLOCK].total() / float(self.total_weight)
        return mean


class MemorySums:
    """The sums of one round: each name's is over the updates that have it.

    Args:
        updates: how many are expected.
    """

    def __init__(self, updates: int) -> None:
        self._updates = updates
        self._sums: dict[str, VectorsSum] = {}

    def add(self, updates: Sequence[Mapping[str, Float32s]], weights: Sequence[int]) -> None:
        """Add updates, as vectors by name, each with its weight."""
        by_name: dict[str, tuple[list[Float32s], list[int]]] = {}
        for update, weight in zip(updates, weights, strict=True):
            for name, vector in update.items():
                vectors, its_weights = by_name.setdefault(name, ([], []))
                vectors.append(vector)
                its_weights.append(weight)
        for name, (vectors, its_weights) in by_name.items():
            if name not in self._sums:
                self._sums[name] = VectorsSum(len(vectors[0]), self._updates)
            self._sums[name].add(vectors, its_weights)

    def __contains__(self, name: str) -> bool:
        return name in self._sums

    def mean(self, name: str, start: int, count: int) -> Float64s:
        """Return a block of a name's mean, zeros where no update has it.

        Raises:
            Corrupt: the weights of the updates that have it are 0.
        """
        found = self._sums.get(name)
        return np.zeros(count) if found is None else found.mean(start)


@dataclass(frozen=True, eq=False)
class MemoryVersion:
    """One version of a model in memory, with the server's vectors and scalars.

    Nothing of it is changed once it is made. The vectors are empty before the first round: clients
    and server then make them of the weights and the run's seed.
    """

    weights: Weights
    vectors: Mapping[str, Float32s] = field(default_factory=dict)
    scalars: Scalars = field(default_factory=dict)


def next_version(base: MemoryVersion, algorithm: Algorithm, given: RoundFigures) -> MemoryVersion:
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


def _whole(parts: Sequence[Float32s]) -> Float32s:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
