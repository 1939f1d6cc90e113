"""FedCM: each local step goes partly along the direction of the round before, over all clients.

Source: Xu et al., "FedCM: Federated Learning with Client-level Momentum", 2021, section 3,
https://arxiv.org/abs/2106.10874. The server's learning rate here is the paper's over the local
learning rate and the number of local steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

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
from runtime.records import Bounds

MOMENTUM = "momentum"
PATH = "path"


@dataclass(frozen=True)
class FedCM(FedAvg):
    """FedAvg whose clients mix their gradient with the last round's mean one; keeps no state.

    Attributes:
        alpha: how much of a step is the batch's gradient, rather than the momentum; 1 is FedAvg.
    """

    family: ClassVar[Family] = "drift"

    alpha: Annotated[float, Bounds(above=0, most=1)] = 0.1

    @property
    def reports(self) -> tuple[str, ...]:
        """The number of local steps times the learning rate."""
        return (PATH,)

    @property
    def broadcasts(self) -> tuple[str, ...]:
        """The mean gradient of the last round, ``Delta``."""
        return (MOMENTUM,)

    def advice(self, training: Mapping[str, Any]) -> str:
        """Warn of local momentum and Adam."""
        return plain_sgd(training, "FedCM")

    def direction(
        self, batch: Batch, w: Arrays, got: Received, state: State, local: Local
    ) -> tuple[Arrays, State]:
        """Return ``alpha * g + (1 - alpha) * Delta``; with ``alpha`` 1 exactly ``g``."""
        g, delta = batch.gradient(w), got.vectors[MOMENTUM]
        if self.alpha == 1:
            return g, state
        return {name: self.alpha * g[name] + (1 - self.alpha) * delta[name] for name in g}, state

    def finish(self, w: Arrays, got: Received, state: State, local: Local) -> tuple[Sent, State]:
        """Send ``K * learning rate``, too."""
        sent, state = super().finish(w, got, state, local)
        return Sent(sent.vectors, {PATH: local.steps * local.learning_rate}), state

    def init(self, weights: Flat, start: int, seed: int) -> dict[str, Flat]:
        """Return a momentum of zeros."""
        return {MOMENTUM: np.zeros_like(weights)}

    def aggregate(
        self, weights: Flat, mean: Mean, state: Blocks, scalars: Scalars
    ) -> tuple[Flat, dict[str, Flat]]:
        """Return FedAvg's weights, and ``Delta' = -mean / (K * learning rate)``."""
        delta = -mean.vectors[UPDATE] / mean.scalars[PATH]
        after, _ = super().aggregate(weights, mean, state, scalars)
        return after, {MOMENTUM: delta.astype(weights.dtype, copy=False)}
