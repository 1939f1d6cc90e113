"""FedExP: the server extrapolates, the further the more the clients' changes differ.

Source: Jhunjhunwala, Wang, Joshi, "FedExP: Speeding up Federated Averaging via Extrapolation",
ICLR 2023, Algorithm 1, https://arxiv.org/abs/2301.09604; with its weighted means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from algorithms._trained import squared_norm, with_trained, without_trained
from algorithms.base import (
    UPDATE,
    Algorithm,
    Arrays,
    Batch,
    Blocks,
    Flat,
    Local,
    Mean,
    Received,
    Report,
    Scalars,
    Sent,
    State,
)
from runtime.records import Bounds

SQUARED = "squared_norm"
STEP = "server_learning_rate"


@dataclass(frozen=True)
class FedExP(Algorithm):
    """FedAvg with a server learning rate that is found anew each round, and at least 1.

    Attributes:
        epsilon: a small number beside the mean change's squared norm, against too long steps.
    """

    epsilon: Annotated[float, Bounds(least=0)] = 0.001

    @property
    def reports(self) -> tuple[str, ...]:
        """The squared norm of the change."""
        return (SQUARED,)

    def direction(
        self, batch: Batch, w: Arrays, got: Received, state: State, local: Local
    ) -> tuple[Arrays, State]:
        """Return the gradient; note which weights have one."""
        g = batch.gradient(w)
        return g, with_trained(state, g)

    def finish(self, w: Arrays, got: Received, state: State, local: Local) -> tuple[Sent, State]:
        """Send ``|change|^2``, too."""
        state, trained = without_trained(state)
        sent, state = super().finish(w, got, state, local)
        return Sent(sent.vectors, {SQUARED: squared_norm(sent.vectors[UPDATE], trained)}), state

    def measure(self, weights: Flat, mean: Mean, state: Blocks) -> dict[str, float]:
        """Return the squared norm of the mean change."""
        return {SQUARED: float(np.square(mean.vectors[UPDATE], dtype=np.float64).sum())}

    def advance(
        self, mean: Mean, reports: Sequence[Report], scalars: Scalars, measured: Scalars
    ) -> Scalars:
        """Return ``max(1, mean |change|^2 / (2 * (|mean change|^2 + epsilon)))``."""
        least = 2 * (measured[SQUARED] + self.epsilon)
        return {STEP: max(1.0, mean.scalars[SQUARED] / least) if least else 1.0}

    def aggregate(
        self, weights: Flat, mean: Mean, state: Blocks, scalars: Scalars
    ) -> tuple[Flat, dict[str, Flat]]:
        """Return ``w + step * mean``; where the step is 1 exactly FedAvg's."""
        change = scalars[STEP] * mean.vectors[UPDATE]
        return super().aggregate(weights, Mean({UPDATE: change}), state, scalars)
