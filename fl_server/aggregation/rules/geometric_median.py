"""The geometric median of the updates: the point whose distances to them are least together.

Source: Pillutla, Kakade, Harchaoui, "Robust Aggregation for Federated Learning", IEEE Transactions
on Signal Processing 2022, Algorithm 2 (the smoothed Weiszfeld algorithm), with equal weights,
https://arxiv.org/abs/1912.13445.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from fl_server.aggregation.rules.base import ByDistance, Float64s
from runtime.records import Bounds


@dataclass(frozen=True)
class GeometricMedian(ByDistance):
    """Updates weigh the less the farther they are from where the others are.

    It holds while fewer than half of the updates are wrong.

    Attributes:
        iterations: of Weiszfeld's algorithm, at most: an update that is ``10**k`` times as large as
            the others takes about ``2 k``.
    """

    least_part: ClassVar[float] = 1e-6
    """No distance counts as less than this part of the median one: so none is divided by 0."""
    precision: ClassVar[float] = 1e-9
    """No share may change by more than this part of it when the iterations end early."""

    iterations: Annotated[int, Bounds(least=1, most=10_000)] = 100

    def shares(self, gram: Float64s) -> Float64s:
        """Return the shares of the updates in the point ``v = sum(shares * updates)``.

        Equation: ``share_i`` is proportional to ``1 / max(nu, |v - update_i|)``.
        """
        shares: Float64s = np.full(len(gram), 1 / len(gram))
        for _ in range(self.iterations):
            squared = np.diag(gram) - 2 * (gram @ shares) + shares @ gram @ shares
            distances = np.sqrt(np.maximum(squared, 0))
            if not distances.any():
                break
            typical = float(np.median(distances)) or float(distances[distances > 0].min())
            inverse = 1 / np.maximum(distances, self.least_part * typical)
            before, shares = shares, inverse / inverse.sum()
            if np.abs(shares / before - 1).max() < self.precision:
                break
        return shares
