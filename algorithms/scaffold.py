"""SCAFFOLD: control variates take out of each client's steps what is particular to its data.

Source: Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning",
ICML 2020, Algorithm 1 with option II, https://arxiv.org/abs/1910.06378. Means are weighted by
examples, where the paper's clients have equally many. A client without its state, new or after a
loss, begins with a variate of zeros, as in the paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from algorithms._advice import plain_sgd
from algorithms.base import (
    UPDATE,
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
from algorithms.fedavg import FedAvg

CONTROL = "control"


@dataclass(frozen=True)
class Scaffold(FedAvg):
    """FedAvg with control variates against the drift of clients whose data differ."""

    family: ClassVar[Family] = "drift"

    @property
    def sends(self) -> tuple[str, ...]:
        """The change of the weights, and that of the client's variate."""
        return (UPDATE, CONTROL)

    @property
    def broadcasts(self) -> tuple[str, ...]:
        """The server's variate ``c``."""
        return (CONTROL,)

    def advice(self, training: Mapping[str, Any]) -> str:
        """Warn of local momentum and Adam."""
        return plain_sgd(training, "SCAFFOLD")

    def direction(
        self, batch: Batch, w: Arrays, got: Received, state: State, local: Local
    ) -> tuple[Arrays, State]:
        """Return ``g - c_i + c``; with variates of zeros exactly ``g``."""
        g = batch.gradient(w)
        own, c = state.get(CONTROL) or {name: g[name] * 0 for name in g}, got.vectors[CONTROL]
        return {name: g[name] - (own[name] - c[name]) for name in g}, {**state, CONTROL: own}

    def finish(self, w: Arrays, got: Received, state: State, local: Local) -> tuple[Sent, State]:
        """Make ``c_i' = c_i - c + (x - y_i) / (K * learning rate)`` and send ``c_i' - c_i`` too."""
        sent, state = super().finish(w, got, state, local)
        own, c, x = state.get(CONTROL, {}), got.vectors[CONTROL], got.weights
        path = local.steps * local.learning_rate
        after = {name: own[name] - c[name] + (x[name] - w[name]) / path for name in own}
        change = {name: after[name] - own[name] for name in own}
        return Sent({**sent.vectors, CONTROL: change}), {**state, CONTROL: after}

    def init(self, weights: Flat, start: int, seed: int) -> dict[str, Flat]:
        """Return a variate of zeros."""
        return {CONTROL: np.zeros_like(weights)}

    def aggregate(
        self, weights: Flat, mean: Mean, state: Blocks, scalars: Scalars
    ) -> tuple[Flat, dict[str, Flat]]:
        """Return FedAvg's weights, and ``c + |S| / N * mean(c_i' - c_i)``."""
        c = state[CONTROL] + mean.updates / mean.population * mean.vectors[CONTROL]
        after, _ = super().aggregate(weights, mean, state, scalars)
        return after, {CONTROL: c.astype(weights.dtype, copy=False)}
