"""An algorithm's server half, block by block: arithmetic alone, wherever the blocks come from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeAlias

import numpy as np

from algorithms.base import STATISTICS, Algorithm, Blocks, Mean, Report, Scalars
from algorithms.transforms import bound_of
from algorithms.transforms.base import At, Transform
from fl_server.aggregation.arithmetic.combining import Combine, Combining
from fl_server.aggregation.arithmetic.exact import Float32s, Float64s
from fl_server.aggregation.arithmetic.single_updates import KeptSingly
from fl_server.aggregation.rules.base import Rule
from fl_server.aggregation.rules.mean import WeightedMean
from runtime.bounds import MAX_EXAMPLES, MAX_SCALARS, is_plausible
from runtime.errors import Corrupt
from storage.weights import Layout, NotFinite, next_values

_WEIGHT_BITS = 20

Block: TypeAlias = tuple[int, Float32s, Blocks]
"""Where it begins in the vector, its weights, and the server's vectors there."""


class Sums(KeptSingly, Protocol):
    """The exact weighted sums of a round, one for each name that its updates have.

    Of some names the single updates are kept instead, see ``Combining.kept_singly``.
    """

    def __contains__(self, name: str) -> bool: ...

    def mean(self, name: str, start: int, count: int) -> Float64s:
        """Return a block of a name's mean, zeros where no update has it or single ones are kept.

        Raises:
            Corrupt: the weights of the updates that have it are 0.
        """
        ...

    def coverage(self, name: str, start: int, count: int) -> Float64s:
        """Return a block of the weights of the updates that have each coordinate.

        Asked only of an algorithm whose clients may train parts.
        """
        ...


@dataclass(frozen=True)
class VersionInput:
    """What a version is made of beside the weights and the server's vectors.

    Attributes:
        scalars: the server's scalars until now.
        sums: of what the clients sent.
        reports: of the updates in the sums, by device.
        population: how many clients the run knows.
        seed: the run's.
        rule: how the updates become one.
        round: its number.
        transforms: what is done to the means.
        weights: of the updates in the sums, in any order.
    """

    scalars: Scalars
    sums: Sums
    reports: Sequence[Report]
    population: int
    seed: int
    rule: Rule = field(default_factory=WeightedMean)
    round: int = 1
    transforms: Sequence[Transform] = ()
    weights: Sequence[int] = ()

    @property
    def sensitivity(self) -> float:
        """How far one update can move the mean; infinite where its norm has no bound."""
        share = max(self.weights) / sum(self.weights) if any(self.weights) else 1.0
        return bound_of(self.transforms) * share


class ServerHalf:
    """Makes one version of blocks.

    Raises:
        Corrupt: the weights of all updates are 0.
        NotFinite: what single updates are multiplied by would not be finite.
    """

    def __init__(self, algorithm: Algorithm, given: VersionInput) -> None:
        self._algorithm, self._given = algorithm, given
        combining = Combining(algorithm, given.rule)
        self._combine: Combine | None = None
        if combining.needs_updates:
            with np.errstate(all="ignore"):
                self._combine = combining.of_round(given.sums, given.reports)
        self._mean = Mean({}, self._scalars(), len(given.reports), given.population)

    def init(self, weights: Float32s, start: int) -> Blocks:
        """Return a block of the server's vectors before the first round."""
        return self._algorithm.init(weights, start, self._given.seed)

    def advance(self, blocks: Callable[[], Iterable[Block]]) -> Scalars:
        """Return the server's next scalars.

        Args:
            blocks: gives all blocks; asked only where the algorithm measures them.

        Raises:
            Corrupt: there are too many of them.
            NotFinite: one is out of bounds.
        """
        measured: dict[str, float] = {}
        if type(self._algorithm).measure is not Algorithm.measure:
            measured = self._measured(blocks())
        with np.errstate(all="ignore"):
            scalars = self._algorithm.advance(
                self._mean, self._given.reports, self._given.scalars, measured
            )
        if len(scalars) > MAX_SCALARS:
            raise Corrupt(f"the algorithm keeps {len(scalars)} scalars, at most {MAX_SCALARS}")
        for name, value in scalars.items():
            if not is_plausible(value):
                raise NotFinite(f"the algorithm's {name!r} would be {value}")
        return scalars

    def next_block(self, block: Block, scalars: Scalars, layout: Layout) -> tuple[Float32s, Blocks]:
        """Return a block of the next version, and of the server's next vectors.

        Args:
            scalars: what ``advance`` returned.

        Raises:
            NotFinite: a value of it would not be finite.
        """
        start, weights, state = block
        # what overflows is found by next_values
        with np.errstate(all="ignore"):
            mean = self._mean_at(start, len(weights))
            result, after = self._algorithm.aggregate(weights, mean, state, scalars)
            if STATISTICS in self._given.sums:
                result = result + self._vector(STATISTICS, start, len(weights))
            values = np.ascontiguousarray(result, np.float32)
        return next_values(weights, values, layout, start), after

    def _mean_at(self, start: int, count: int) -> Mean:
        names, given = self._algorithm.sends, self._given
        vectors = {name: self._vector(name, start, count) for name in names}
        mean = replace(self._mean, vectors=vectors)
        if self._algorithm.narrow_widths:
            coverage = {name: given.sums.coverage(name, start, count) for name in names}
            mean = replace(mean, coverage=coverage)
        for transform in given.transforms:
            mean = transform.combined(mean, At(given.seed, given.round, start, given.sensitivity))
        return mean

    def _vector(self, name: str, start: int, count: int) -> Float64s:
        """Return a block of what the updates' vectors of a name become."""
        updates = self._given.sums.singles(name) if self._combine is not None else None
        if updates is None or self._combine is None:
            return self._given.sums.mean(name, start, count)
        return self._combine(updates, start, count)

    def _scalars(self) -> dict[str, float]:
        sums = self._given.sums
        return {
            name: float(sums.mean(name, 0, 1)[0])
            for name in self._algorithm.reports
            if name in sums
        }

    def _measured(self, blocks: Iterable[Block]) -> dict[str, float]:
        found: dict[str, float] = {}
        for start, weights, state in blocks:
            with np.errstate(all="ignore"):
                mean = self._mean_at(start, len(weights))
                part = self._algorithm.measure(weights, mean, state)
            for name, value in part.items():
                found[name] = found.get(name, 0.0) + float(value)
        return found


class WeightedSum(Protocol):
    """A weighted sum of one vector of several updates."""

    @property
    def weight(self) -> int:
        """The sum of their weights."""
        ...

    def total(self, start: int) -> Float64s:
        """Return the block of the sum that begins at ``start``."""
        ...


def mean_of(
    summed: WeightedSum | None, coverage: WeightedSum | None, start: int, count: int
) -> Float64s:
    """Return a block of a mean, zeros where no update has it, or has a coordinate of it.

    Args:
        summed: the updates' sum; None where no update has the vector.
        coverage: the sum of the weights of those that have each coordinate; None where all have
            the whole.

    Raises:
        Corrupt: the weights of the updates that have it are 0.
    """
    if summed is None:
        return np.zeros(count)
    if summed.weight <= 0:
        raise Corrupt("the weights of all updates are 0")
    total = summed.total(start)
    if coverage is None:
        mean: Float64s = total / float(summed.weight)
        return mean
    weights = coverage.total(start)
    return np.divide(total, weights, out=np.zeros(len(total)), where=weights > 0)


def kept_vectors(after: Blocks) -> dict[str, Float32s]:
    """Return a block of the server's vectors as they are kept.

    Raises:
        NotFinite: a value is not finite; the text names the vector.
    """
    kept = {}
    for name, values in after.items():
        with np.errstate(over="ignore"):
            kept[name] = np.ascontiguousarray(values, "<f4")
        if not np.isfinite(kept[name]).all():
            raise NotFinite(f"the algorithm's {name!r} would not be finite")
    return kept


def weight_of(algorithm: Algorithm, report: Report, scalars: Scalars) -> int:
    """Return an update's weight in the sums as a whole number, all on one scale.

    Args:
        scalars: the server's.

    Raises:
        Corrupt: it has none; the text is the reason that the operator reads.
    """
    if type(algorithm).weight is Algorithm.weight:
        return report.num_examples
    try:
        weight = algorithm.weight(report, scalars)
    except ArithmeticError as error:
        raise Corrupt(f"it has no weight by its scalars: {error}") from error
    if not 0 <= weight <= MAX_EXAMPLES:
        raise Corrupt(f"its weight would be {weight}")
    return round(math.ldexp(weight, _WEIGHT_BITS))


def covered(algorithm: Algorithm) -> tuple[str, ...]:
    """Return the vectors of which an update may have a part."""
    return (*algorithm.sends, STATISTICS) if algorithm.narrow_widths else ()


def section_sizes(algorithm: Algorithm, layout: Layout) -> dict[str, int]:
    """Return what an update may have by name, and how many values that is."""
    sizes = dict.fromkeys((*algorithm.sends, STATISTICS), layout.size)
    return sizes | dict.fromkeys(algorithm.reports, 1)


def require_sections(found: Mapping[str, int], algorithm: Algorithm, layout: Layout) -> None:
    """Raise Corrupt where an update lacks what the algorithm's have, or has something else.

    Args:
        found: the number of values by name.
    """
    for name in algorithm.reports:
        if name not in found:
            raise Corrupt(f"it has no {name!r}, which the algorithm's updates have")
    sizes = section_sizes(algorithm, layout)
    for name, count in found.items():
        if sizes.get(name) != count:
            expected = ", ".join(f"{each} of {size}" for each, size in sizes.items())
            raise Corrupt(
                f"a section {name!r} of {count} values; the algorithm's updates have {expected}"
            )
