"""FedSAM: clients look for flat minima, whose mean generalises better.

Source: Qu et al., "Generalized Federated Learning via Sharpness Aware Minimization", ICML 2022,
Algorithm 1, https://arxiv.org/abs/2206.02618. A step costs two gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from algorithms.base import Arrays, Batch, Family, Local, Received, State
from algorithms.fedavg import FedAvg
from runtime.records import Bounds

_LEAST_NORM = 1e-12


@dataclass(frozen=True)
class FedSAM(FedAvg):
    """FedAvg whose clients take the gradient where the loss near them is about largest.

    Attributes:
        rho: how far from the weights the gradient is taken; 0 is FedAvg.
    """

    family: ClassVar[Family] = "drift"

    rho: Annotated[float, Bounds(least=0)] = 0.05

    def direction(
        self, batch: Batch, w: Arrays, got: Received, state: State, local: Local
    ) -> tuple[Arrays, State]:
        """Return the gradient at ``w + rho * g / |g|``; with ``rho`` 0 exactly ``g``."""
        g = batch.gradient(w)
        if self.rho == 0:
            return g, state
        norm = sum((each * each).sum() for each in g.values()) ** 0.5
        scale = self.rho / (norm + _LEAST_NORM)
        return batch.gradient({**w, **{name: w[name] + scale * g[name] for name in g}}), state
