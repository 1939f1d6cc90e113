"""FedSGD: the server takes one gradient step per round, over all clients' data.

Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized
Data", AISTATS 2017, section 2, https://arxiv.org/abs/1602.05629. A client that cannot hold all its
data as one batch sums the gradients of its batches, all at the global weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from algorithms._advice import plain_sgd
from algorithms.base import Arrays, Batch, Local, Received, State
from algorithms.fedavg import FedAvg


@dataclass(frozen=True)
class FedSGD(FedAvg):
    """One step of gradient descent per round, whatever the number of local steps."""

    def advice(self, training: Mapping[str, Any]) -> str:
        """Warn of local momentum and Adam."""
        return plain_sgd(training, "FedSGD")

    def direction(
        self, batch: Batch, w: Arrays, got: Received, state: State, local: Local
    ) -> tuple[Arrays, State]:
        """Return the gradient at the global weights over the number of steps; of one step, ``g``.

        The steps add up to one along the mean of the batches' gradients.
        """
        # a model's own weights at first: running statistics do not go on at others
        g = batch.gradient(w if batch.number == 0 else got.weights)
        return {name: g[name] / local.steps for name in g}, state
