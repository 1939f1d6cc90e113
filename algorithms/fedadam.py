"""FedAdam: Adam on the server, over the mean update of each round.

Source: Reddi et al., "Adaptive Federated Optimization", ICLR 2021, Algorithm 2,
https://arxiv.org/abs/2003.00295.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from algorithms._adaptive import Adaptive
from algorithms.base import Flat
from runtime.records import Bounds


@dataclass(frozen=True)
class FedAdam(Adaptive):
    """FedAvg whose server steps as Adam does: less where updates were large lately.

    Attributes:
        server_learning_rate: how far a step goes.
        beta1: how much of the first moment stays from round to round.
        tau: the least that a step is divided by: the smaller, the more adaptive.
        beta2: how slowly the second moment follows the squares of the mean updates.
    """

    beta2: Annotated[float, Bounds(least=0, below=1)] = 0.99

    def second_moment(self, v: Flat, squared: Flat) -> Flat:
        """Return ``beta2 * v + (1 - beta2) * mean^2``."""
        return self.beta2 * v + (1 - self.beta2) * squared
