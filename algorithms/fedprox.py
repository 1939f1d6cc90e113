"""FedProx: FedAvg whose clients are held near the global model.

Source: Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, equation 2,
https://arxiv.org/abs/1812.06127. The local objective is ``F(w) + mu/2 * |w - w0|^2``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from algorithms.base import Arrays
from algorithms.fedavg import FedAvg
from runtime.errors import ConfigError


@dataclass(frozen=True)
class FedProx(FedAvg):
    """FedAvg with the proximal term's gradient, ``mu * (w - w0)``, added on the client."""

    mu: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.mu) and self.mu >= 0):
            raise ConfigError(f"mu must be 0 or more, not {self.mu}")

    def gradient(self, g: Arrays, w: Arrays, w0: Arrays, state: Arrays) -> Arrays:
        """Return ``g + mu * (w - w0)``; with ``mu`` 0 exactly ``g``."""
        del state
        if self.mu == 0:
            return g
        return {name: g[name] + self.mu * (w[name] - w0[name]) for name in g}
