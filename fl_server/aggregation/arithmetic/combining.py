"""How a round's updates become one where the exact sum does not do: by a rule, or by factors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from algorithms.base import STATISTICS, Algorithm, Report
from fl_server.aggregation.arithmetic.exact import Float64s
from fl_server.aggregation.arithmetic.single_updates import KeptSingly, SingleUpdates
from fl_server.aggregation.rules.base import ByCoordinate, ByDistance, Rule
from storage.weights import NotFinite

Combine: TypeAlias = Callable[[SingleUpdates, int, int], Float64s]
"""Makes one vector of those of several updates: a block of it, given its start and its count."""


@dataclass(frozen=True)
class Combining:
    """An algorithm with the rule of its run."""

    algorithm: Algorithm
    rule: Rule

    @property
    def needs_updates(self) -> bool:
        """Whether the single updates are needed: a domain hands on each and not their sum."""
        return bool(self.kept_singly)

    @property
    def kept_singly(self) -> frozenset[str]:
        """The names of the vectors that are kept of every update until the round's end."""
        if self.rule.needs_updates:
            return frozenset((*self.algorithm.sends, STATISTICS))
        return frozenset(self.algorithm.sends if self.algorithm.needs_updates else ())

    def of_round(self, sums: KeptSingly, reports: Sequence[Report]) -> Combine:
        """Return how the vectors that are kept singly are combined.

        Args:
            reports: of the updates in the sums, by device.

        Raises:
            NotFinite: a factor is not finite.
        """
        rule = self.rule
        if isinstance(rule, ByCoordinate):
            return lambda updates, start, count: updates.combined(start, count, rule.combine)
        devices = [report.device_id for report in reports]
        gram = self._gram(sums, devices)
        if isinstance(rule, ByDistance):
            found = rule.shares(gram)
        else:
            found = np.asarray(self.algorithm.factors(gram, reports), np.float64)
        if not np.isfinite(found).all():
            raise NotFinite(f"the factors of the updates would be {found.tolist()}")
        factors = dict(zip(devices, found.tolist(), strict=True))
        return lambda updates, start, count: updates.weighted(start, count, factors)

    def _gram(self, sums: KeptSingly, devices: Sequence[str]) -> Float64s:
        """Return the dot products of what is kept of all pairs of devices' updates."""
        found: Float64s = np.zeros((len(devices),) * 2)
        for name in sorted(self.kept_singly):
            if (updates := sums.singles(name)) is not None:
                found += updates.gram(devices)
        return found
