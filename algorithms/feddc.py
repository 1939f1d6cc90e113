"""FedDC: each client learns how far its weights drift from the global ones, and corrects that.

Source: Gao et al., "FedDC: Federated Learning with Non-IID Data via Local Drift Decoupling and
Correction", CVPR 2022, Algorithm 1, https://arxiv.org/abs/2203.11751. Where a part of the clients
trains, the mean drift is over all clients, as in the authors' code. A client without its state
begins with a drift of zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np

from algorithms._advice import plain_sgd
from algorithms.base import (
    UPDATE,
    Algorithm,
    Arrays,
    Batch,
    Blocks,
    Family,
    Flat,
    Local,
    Mean,
    Received,
    Scalars,
    Sent,
    State,
)
from runtime.records import Bounds

DRIFT = "drift"
LAST = "last_change"


@dataclass(frozen=True)
class FedDC(Algorithm):
    """Clients' weights may differ from the global ones by a drift, which the server adds up.

    Attributes:
        alpha: how strongly a client's weights are held to the global ones less its drift.
    """

    family: ClassVar[Family] = "drift"

    alpha: Annotated[float, Bounds(above=0)] = 0.01

    @property
    def broadcasts(self) -> tuple[str, ...]:
        """The last round's mean change ``g``."""
        return (LAST,)

    def advice(self, training: Mapping[str, Any]) -> str:
        """Warn of local momentum and Adam."""
        return plain_sgd(training, "FedDC")

    def direction(
        self, batch: Batch, w: Arrays, got: Received, state: State, local: Local
    ) -> tuple[Arrays, State]:
        """Return ``grad + alpha * (h_i + w - w0) + (g_i - g) / (K * learning rate)``."""
        grad, x, g = batch.gradient(w), got.weights, got.vectors[LAST]
        zeros = {name: grad[name] * 0 for name in grad}
        h, own = state.get(DRIFT) or zeros, state.get(LAST) or zeros
        path = local.steps * local.learning_rate
        corrected = {
            name: grad[name]
            + self.alpha * (h[name] + w[name] - x[name])
            + (own[name] - g[name]) / path
            for name in grad
        }
        return corrected, {**state, DRIFT: h, LAST: own}

    def finish(self, w: Arrays, got: Received, state: State, local: Local) -> tuple[Sent, State]:
        """Keep ``h_i' = h_i + w_i - w0``, and the change ``g_i = w_i - w0``."""
        sent, state = super().finish(w, got, state, local)
        h, change = state.get(DRIFT, {}), sent.vectors[UPDATE]
        drift = {name: h[name] + change[name] for name in h}
        return sent, {**state, DRIFT: drift, LAST: {name: change[name] for name in h}}

    def init(self, weights: Flat, start: int, seed: int) -> dict[str, Flat]:
        """Return a mean drift and a last change of zeros."""
        return {DRIFT: np.zeros_like(weights), LAST: np.zeros_like(weights)}

    def aggregate(
        self, weights: Flat, mean: Mean, state: Blocks, scalars: Scalars
    ) -> tuple[Flat, dict[str, Flat]]:
        """Make ``h' = h + |S| / N * mean`` and return ``w + mean + h'``."""
        change = mean.vectors[UPDATE]
        drift = state[DRIFT] + mean.updates / mean.population * change
        kept = {DRIFT: drift, LAST: change}
        after = (weights + change + drift).astype(weights.dtype, copy=False)
        return after, {name: each.astype(weights.dtype) for name, each in kept.items()}
