"""FedDyn: each client's loss is changed from round to round so that its optimum is the global one.

Source: Acar et al., "Federated Learning Based on Dynamic Regularization", ICLR 2021, Algorithm 1,
https://arxiv.org/abs/2111.04263. Means are weighted by examples, where the paper's clients have
equally many. A client without its state begins with ``h_k`` of zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

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

GRADIENT = "h"


@dataclass(frozen=True)
class FedDyn(Algorithm):
    """Clients' losses get a linear and a proximal term that make their optima agree.

    Attributes:
        alpha: how strongly clients are pulled to each other; the smaller, the longer steps are.
    """

    family: ClassVar[Family] = "drift"

    alpha: Annotated[float, Bounds(above=0)] = 0.01

    def direction(
        self, batch: Batch, w: Arrays, got: Received, state: State, local: Local
    ) -> tuple[Arrays, State]:
        """Return ``g - h_k + alpha * (w - w0)``."""
        g, x = batch.gradient(w), got.weights
        h = state.get(GRADIENT) or {name: g[name] * 0 for name in g}
        pulled = {name: g[name] - h[name] + self.alpha * (w[name] - x[name]) for name in g}
        return pulled, {**state, GRADIENT: h}

    def finish(self, w: Arrays, got: Received, state: State, local: Local) -> tuple[Sent, State]:
        """Keep ``h_k' = h_k - alpha * (w_k - w0)``, the client's gradient at ``w_k``."""
        sent, state = super().finish(w, got, state, local)
        h, change = state.get(GRADIENT, {}), sent.vectors[UPDATE]
        return sent, {**state, GRADIENT: {name: h[name] - self.alpha * change[name] for name in h}}

    def init(self, weights: Flat, start: int, seed: int) -> dict[str, Flat]:
        """Return ``h`` of zeros."""
        return {GRADIENT: np.zeros_like(weights)}

    def aggregate(
        self, weights: Flat, mean: Mean, state: Blocks, scalars: Scalars
    ) -> tuple[Flat, dict[str, Flat]]:
        """Make ``h' = h - alpha * |P| / m * mean`` and return ``w + mean - h' / alpha``."""
        h = state[GRADIENT] - self.alpha * mean.updates / mean.population * mean.vectors[UPDATE]
        after = weights + mean.vectors[UPDATE] - h / self.alpha
        kept = {GRADIENT: h.astype(weights.dtype, copy=False)}
        return after.astype(weights.dtype, copy=False), kept
