"""What Krum and Multi-Krum share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl_server.aggregation.rules.base import (
    ByDistance,
    Float64s,
    Share,
    count_of,
    least_for,
    squared_distances,
)


@dataclass(frozen=True)
class KrumScores(ByDistance):
    """Scores of updates."""

    share: Share = 0.2

    @property
    def least_updates(self) -> int:
        """``2 f + 3``, as the paper's proof needs."""
        return least_for(self.share, 3)

    def scores(self, gram: Float64s) -> Float64s:
        """Return the sum of each update's squared distances to the ``n - f - 2`` nearest others."""
        neighbours = max(1, len(gram) - count_of(self.share, len(gram)) - 2)
        ordered = np.sort(squared_distances(gram), axis=1)
        # the first is the distance to itself
        found: Float64s = ordered[:, 1 : neighbours + 1].sum(axis=1)
        return found
