"""The mean of each coordinate without its smallest and its largest values.

Source: Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML
2018, Definition 2, https://arxiv.org/abs/1803.01498.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl_server.aggregation.rules.base import (
    ByCoordinate,
    Float32s,
    Float64s,
    Share,
    count_of,
    least_for,
)


@dataclass(frozen=True)
class TrimmedMean(ByCoordinate):
    """The mean of what is left of each coordinate after a cut at both ends.

    Attributes:
        share: the part of the values that is cut at each end, rounded up: as many updates may be
            wrong.
    """

    share: Share = 0.2

    @property
    def least_updates(self) -> int:
        """As many as leave one value after both cuts."""
        return least_for(self.share, 1)

    def combine(self, values: Float32s) -> Float64s:
        """Return the means."""
        cut = count_of(self.share, len(values))
        kept = np.sort(values, axis=0)[cut : len(values) - cut]
        total = np.zeros(values.shape[1])
        # one after the other: numpy's own sum would depend on how many coordinates there are
        for row in kept:
            total += row
        return total / len(kept)
