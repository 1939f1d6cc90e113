"""FedAvgM: momentum on the server, over the mean update of each round.

Source: Hsu, Qi, Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated
Visual Classification", 2019, section 4.3, https://arxiv.org/abs/1909.06335.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from algorithms.base import UPDATE, Blocks, Flat, Mean, Scalars
from algorithms.fedavg import FedAvg
from runtime.records import Bounds

VELOCITY = "velocity"


@dataclass(frozen=True)
class FedAvgM(FedAvg):
    """FedAvg whose server steps along a decaying sum of the mean updates.

    Attributes:
        server_momentum: how much of the step before is added; 0 is FedAvg.
    """

    server_momentum: Annotated[float, Bounds(least=0, below=1)] = 0.9

    def init(self, weights: Flat, start: int, seed: int) -> dict[str, Flat]:
        """Return a velocity of zeros."""
        return {VELOCITY: np.zeros_like(weights)}

    def aggregate(
        self, weights: Flat, mean: Mean, state: Blocks, scalars: Scalars
    ) -> tuple[Flat, dict[str, Flat]]:
        """Make ``v' = momentum * v + mean`` and return ``w + server_learning_rate * v'``."""
        velocity = self.server_momentum * state[VELOCITY] + mean.vectors[UPDATE]
        after, _ = super().aggregate(weights, Mean({UPDATE: velocity}), state, scalars)
        return after, {VELOCITY: velocity.astype(weights.dtype, copy=False)}
