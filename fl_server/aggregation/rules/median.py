"""The median of each coordinate.

Source: Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML
2018, Definition 1, https://arxiv.org/abs/1803.01498.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl_server.aggregation.rules.base import ByCoordinate, Float32s, Float64s


@dataclass(frozen=True)
class Median(ByCoordinate):
    """Of each coordinate the middle value; of an even number the mean of the two in the middle.

    It holds while fewer than half of the updates are wrong.
    """

    def combine(self, values: Float32s) -> Float64s:
        """Return the medians."""
        low, high = (len(values) - 1) // 2, len(values) // 2
        ordered = np.partition(values, (low, high), axis=0)
        middle: Float64s = (ordered[low].astype(np.float64) + ordered[high]) / 2
        return middle
