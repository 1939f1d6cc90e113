"""How a round's updates become one where the exact sum does not do: by a rule, or by factors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from algorithms.base import STATISTICS, Algorithm, Report
from fl_server.aggregation.arithmetic.exact import Float64s
from fl_server.aggregation.rules.base import ByCoordinate, ByDistance, Rule
from fl_server.aggregation.single_updates import SingleUpdates
from fl_server.aggregation.sums import Combine, RoundSums
from storage.weights import NotFinite


@dataclass(frozen=True)
class Combining:
    """An algorithm with the rule of its run."""

    algorithm: Algorithm
    rule: Rule

    @property
    def needs_updates(self) -> bool:
        """Whether the single updates are needed: a domain hands on each and not their sum."""
        return self.rule.needs_updates or self.algorithm.needs_updates

    @property
    def kept_singly(self) -> frozenset[str]:
        """The names of the vectors that are kept of every update until the round's end."""
        if self.rule.needs_updates:
            return frozenset((*self.algorithm.sends, STATISTICS))
        return frozenset(self.algorithm.sends if self.algorithm.needs_updates else ())

    def of_round(self, sums: RoundSums, reports: Sequence[Report]) -> Combine | None:
        """Return how the vectors that are kept singly are combined, None where none are.

        Args:
            reports: of the updates in the sums, by device.

        Raises:
            NotFinite: the algorithm gives a factor that is not finite.
        """
        rule = self.rule
        if isinstance(rule, ByCoordinate):
            return lambda updates, start, count: updates.combined(start, count, rule.combine)
        devices = [report.device_id for report in reports]
        if isinstance(rule, ByDistance):
            found = rule.shares(sums.gram(devices))
        elif self.algorithm.needs_updates:
            found = np.asarray(self.algorithm.factors(sums.gram(devices), reports), np.float64)
        else:
            return None
        if not np.isfinite(found).all():
            raise NotFinite(f"the factors of the updates would be {found.tolist()}")
        factors = dict(zip(devices, found.tolist(), strict=True))

        def combine(updates: SingleUpdates, start: int, count: int) -> Float64s:
            return updates.weighted(start, count, factors)

        return combine
