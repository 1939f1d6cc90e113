"""FedProx: FedAvg whose clients are held near the global model.

Source: Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, equation 2,
https://arxiv.org/abs/1812.06127. The local objective is ``F(w) + mu/2 * |w - w0|^2``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from algorithms.base import Arrays, Batch, Family, Local, Received, State
from algorithms.fedavg import FedAvg
from runtime.records import Bounds


@dataclass(frozen=True)
class FedProx(FedAvg):
    """FedAvg with the proximal term's gradient, ``mu * (w - w0)``, added on the client.

    Attributes:
        mu: how strongly a client's weights are pulled back to the global ones; 0 is FedAvg.
    """

    family: ClassVar[Family] = "drift"

    mu: Annotated[float, Bounds(least=0)] = 0.01

    def direction(
        self, batch: Batch, w: Arrays, got: Received, state: State, local: Local
    ) -> tuple[Arrays, State]:
        """Return ``g + mu * (w - w0)``; with ``mu`` 0 exactly ``g``."""
        g = batch.gradient(w)
        if self.mu == 0:
            return g, state
        return {name: g[name] + self.mu * (w[name] - got.weights[name]) for name in g}, state
