"""Federated averaging.

Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized
Data", AISTATS 2017, Algorithm 1, https://arxiv.org/abs/1602.05629. The server learning rate is
that of Reddi et al., "Adaptive Federated Optimization", ICLR 2021, Algorithm 1,
https://arxiv.org/abs/2003.00295; at 1.0 the two are the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from algorithms.base import UPDATE, Algorithm, Blocks, Flat, Mean, Scalars
from runtime.records import Bounds


@dataclass(frozen=True)
class FedAvg(Algorithm):
    """Clients run plain SGD; the server takes a step along the mean of their changes.

    Attributes:
        server_learning_rate: how far the server goes along the mean change; 1 is plain averaging.
    """

    server_learning_rate: Annotated[float, Bounds(above=0)] = 1.0

    def aggregate(
        self, weights: Flat, mean: Mean, state: Blocks, scalars: Scalars
    ) -> tuple[Flat, dict[str, Flat]]:
        """Return ``weights + server_learning_rate * mean``."""
        del scalars
        after = weights + self.server_learning_rate * mean.vectors[UPDATE]
        return after.astype(weights.dtype, copy=False), dict(state)
