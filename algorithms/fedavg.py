"""Federated averaging.

Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized
Data", AISTATS 2017, Algorithm 1, https://arxiv.org/abs/1602.05629. The server learning rate is
that of Reddi et al., "Adaptive Federated Optimization", ICLR 2021, Algorithm 1,
https://arxiv.org/abs/2003.00295; at 1.0 the two are the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from algorithms.base import Algorithm, Flat, ServerState
from runtime.errors import ConfigError


@dataclass(frozen=True)
class FedAvg(Algorithm):
    """Clients run plain SGD; the server takes a step along the mean of their changes."""

    server_learning_rate: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.server_learning_rate) and self.server_learning_rate > 0):
            raise ConfigError(
                f"server_learning_rate must be above 0, not {self.server_learning_rate}"
            )

    def aggregate(
        self, weights: Flat, mean_update: Flat, state: ServerState
    ) -> tuple[Flat, dict[str, Flat]]:
        """Return ``weights + server_learning_rate * mean_update``."""
        return super().aggregate(weights, self.server_learning_rate * mean_update, state)
