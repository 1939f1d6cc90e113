"""What the adaptive server optimisers share.

Source: Reddi et al., "Adaptive Federated Optimization", ICLR 2021, Algorithm 2,
https://arxiv.org/abs/2003.00295. As there, the moments are not corrected for their start, and the
second begins at ``tau^2``.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from algorithms.base import UPDATE, Algorithm, Blocks, Flat, Mean, Scalars
from runtime.records import Bounds

FIRST = "first_moment"
SECOND = "second_moment"


@dataclass(frozen=True)
class Adaptive(Algorithm):
    """A server optimiser with a step size for each weight.

    Attributes:
        server_learning_rate: how far a step goes.
        beta1: how much of the first moment stays from round to round.
        tau: the least that a step is divided by: the smaller, the more adaptive.
    """

    server_learning_rate: Annotated[float, Bounds(above=0)] = 0.03
    beta1: Annotated[float, Bounds(least=0, below=1)] = 0.9
    tau: Annotated[float, Bounds(above=0)] = 0.001

    @abstractmethod
    def second_moment(self, v: Flat, squared: Flat) -> Flat:
        """Return the next second moment, given the squares of the mean update."""

    def init(self, weights: Flat, start: int, seed: int) -> dict[str, Flat]:
        """Return a first moment of zeros and a second of ``tau^2``."""
        return {FIRST: np.zeros_like(weights), SECOND: np.full_like(weights, self.tau**2)}

    def aggregate(
        self, weights: Flat, mean: Mean, state: Blocks, scalars: Scalars
    ) -> tuple[Flat, dict[str, Flat]]:
        """Make ``m' = beta1 * m + (1 - beta1) * mean`` and ``v'``.

        Return ``w + server_learning_rate * m' / (sqrt(v') + tau)``.
        """
        update = mean.vectors[UPDATE]
        m = self.beta1 * state[FIRST] + (1 - self.beta1) * update
        v = self.second_moment(state[SECOND], update * update)
        after = weights + self.server_learning_rate * m / (np.sqrt(v) + self.tau)
        moments = {FIRST: m, SECOND: v}
        kept = {name: each.astype(weights.dtype, copy=False) for name, each in moments.items()}
        return after.astype(weights.dtype, copy=False), kept
