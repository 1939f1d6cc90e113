"""MimeLite: each local step uses the server's momentum, which local steps leave as it is.

Source: Karimireddy et al., "Breaking the Centralized Barrier for Cross-Device Federated
Learning", NeurIPS 2021, Algorithm 1 (Mime and MimeLite) with SGD with momentum as the base
algorithm, https://arxiv.org/abs/2008.03606.
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
GRADIENT = "gradient"


@dataclass(frozen=True)
class MimeLite(FedAvg):
    """FedAvg whose clients step along the server's momentum, made of full local gradients.

    Attributes:
        beta: how much of a step is the momentum, rather than the batch's gradient; 0 is FedAvg.
    """

    family: ClassVar[Family] = "drift"

    beta: Annotated[float, Bounds(least=0, below=1)] = 0.9

    @property
    def sends(self) -> tuple[str, ...]:
        """The change of the weights, and the full local gradient at the global weights."""
        return (UPDATE, GRADIENT)

    @property
    def broadcasts(self) -> tuple[str, ...]:
        """The momentum ``m``."""
        return (MOMENTUM,)

    def advice(self, training: Mapping[str, Any]) -> str:
        """Warn of local momentum and Adam."""
        return plain_sgd(training, "MimeLite")

    def direction(
        self, batch: Batch, w: Arrays, got: Received, state: State, local: Local
    ) -> tuple[Arrays, State]:
        """Return ``(1 - beta) * g + beta * m``; with ``beta`` 0 exactly ``g``."""
        g, m = batch.gradient(w), got.vectors[MOMENTUM]
        if self.beta == 0:
            return g, state
        return {name: (1 - self.beta) * g[name] + self.beta * m[name] for name in g}, state

    def finish(self, w: Arrays, got: Received, state: State, local: Local) -> tuple[Sent, State]:
        """Send the full gradient at the global weights, too."""
        sent, state = super().finish(w, got, state, local)
        return Sent({**sent.vectors, GRADIENT: local.gradient(got.weights)}), state

    def init(self, weights: Flat, start: int, seed: int) -> dict[str, Flat]:
        """Return a momentum of zeros."""
        return {MOMENTUM: np.zeros_like(weights)}

    def aggregate(
        self, weights: Flat, mean: Mean, state: Blocks, scalars: Scalars
    ) -> tuple[Flat, dict[str, Flat]]:
        """Return FedAvg's weights, and ``m' = (1 - beta) * mean gradient + beta * m``."""
        m = (1 - self.beta) * mean.vectors[GRADIENT] + self.beta * state[MOMENTUM]
        after, _ = super().aggregate(weights, mean, state, scalars)
        return after, {MOMENTUM: m.astype(weights.dtype, copy=False)}
