"""FedAvg beside a personal model of each client, which is trained along."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from algorithms._advice import plain_steps
from algorithms.base import Arrays, Family, Local, Received, Sent, State
from algorithms.fedavg import FedAvg

OWN = "own"
"""The part of a client's state that holds the trained weights of its own model."""

_STATISTICS = "statistics"


@dataclass(frozen=True)
class BesideFedAvg(FedAvg):
    """FedAvg whose clients keep a model of their own, and predict with it.

    Running statistics stay those of the client's own data, as of the global model's training: the
    average of all clients' fits nobody's own model where their inputs differ.
    """

    family: ClassVar[Family] = "personal"

    def advice(self, training: Mapping[str, Any]) -> str:
        """Tell that personal models are not trained by the optimiser."""
        return plain_steps(training)

    def finish(self, w: Arrays, got: Received, state: State, local: Local) -> tuple[Sent, State]:
        """Return FedAvg's update, and keep the statistics with the own model."""
        sent, state = super().finish(w, got, state, local)
        own = state.get(OWN, {})
        return sent, {**state, _STATISTICS: {name: w[name] for name in w if name not in own}}

    def personal(self, got: Received, state: State, local: Local) -> Arrays | None:
        """Return the own model."""
        if OWN not in state:
            return None
        return {**got.weights, **state.get(_STATISTICS, {}), **self._predicting(got, state)}

    def _predicting(self, got: Received, state: State) -> Arrays:
        """Return the trained weights that the client predicts with."""
        del got
        return state[OWN]
