"""Ditto: a personal model beside the global one, held near it.

Source: Li et al., "Ditto: Fair and Robust Federated Learning Through Personalization", ICML 2021,
Algorithm 1, https://arxiv.org/abs/2012.04221. The personal objective is
``F(v) + lam/2 * |v - w0|^2``, where ``w0`` is the global model of the round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from algorithms._beside import OWN, BesideFedAvg
from algorithms.base import Arrays, Batch, Local, Received, State
from runtime.records import Bounds


@dataclass(frozen=True)
class Ditto(BesideFedAvg):
    """FedAvg beside a personal model of each client, which is pulled towards the global one.

    A client without a personal model yet begins with the global one. Its steps are of plain
    gradient descent, on the batches of the global model's.

    Attributes:
        lam: how strong the pull is; 0 is training alone.
    """

    lam: Annotated[float, Bounds(least=0)] = 0.1

    def direction(
        self, batch: Batch, w: Arrays, got: Received, state: State, local: Local
    ) -> tuple[Arrays, State]:
        """Return ``f'(w)``, and ``v - lr * (f'(v) + lam * (v - w0))`` as the personal model."""
        v, w0 = state.get(OWN, got.weights), got.weights
        g, h = batch.gradient(w), batch.gradient(v)
        own = {
            name: v[name] - local.learning_rate * (h[name] + self.lam * (v[name] - w0[name]))
            for name in h
        }
        return g, {**state, OWN: own}
