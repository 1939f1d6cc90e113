"""FedAdagrad: Adagrad on the server, over the mean update of each round.

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
class FedAdagrad(Adaptive):
    """FedAvg whose server steps as Adagrad does: less where updates were large so far.

    Attributes:
        server_learning_rate: how far a step goes.
        beta1: how much of the first moment stays from round to round.
        tau: the least that a step is divided by: the smaller, the more adaptive.
    """

    server_learning_rate: Annotated[float, Bounds(above=0)] = 0.1
    beta1: Annotated[float, Bounds(least=0, below=1)] = 0.0

    def second_moment(self, v: Flat, squared: Flat) -> Flat:
        """Return ``v + mean^2``."""
        return v + squared
