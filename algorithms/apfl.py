"""APFL: a personal model that is a mixture of an own and the global one.

Source: Deng, Kamani, Mahdavi, "Adaptive Personalized Federated Learning", 2020, Algorithm 1,
https://arxiv.org/abs/2003.13461. The mixture is ``alpha * v + (1 - alpha) * w``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from algorithms._beside import OWN, BesideFedAvg
from algorithms.base import Arrays, Batch, Local, Received, State
from runtime.records import Bounds

_ALPHA = "alpha"


@dataclass(frozen=True)
class APFL(BesideFedAvg):
    """FedAvg beside an own model of each client; it predicts with a mixture of the two.

    Attributes:
        alpha: how much of the own model is in the mixture, to begin with.
        adaptive: whether each client moves its ``alpha`` along the gradient, once a round.
    """

    alpha: Annotated[float, Bounds(least=0, most=1)] = 0.5
    adaptive: bool = True

    def direction(
        self, batch: Batch, w: Arrays, got: Received, state: State, local: Local
    ) -> tuple[Arrays, State]:
        """Return ``f'(w)``, and the own model after a step along the mixture's gradient.

        That is ``v - lr * alpha * h`` where ``h`` is ``f'`` at the mixture. In the round's first
        step ``alpha`` becomes ``alpha - lr * <v - w, h>``, within 0 and 1.
        """
        v, alpha, lr = state.get(OWN, got.weights), self._alpha(state), local.learning_rate
        g = batch.gradient(w)
        h = batch.gradient({name: alpha * v[name] + (1 - alpha) * w[name] for name in g})
        after = {**state, OWN: {name: v[name] - lr * (alpha * h[name]) for name in h}}
        if self.adaptive and batch.number == 0:
            slope = sum(((v[name] - w[name]) * h[name]).sum() for name in h)
            after[_ALPHA] = {"value": (alpha - lr * slope).clip(0, 1)}
        return g, after

    def _predicting(self, got: Received, state: State) -> Arrays:
        """Return the mixture of the own model and the global one."""
        v, w, alpha = state[OWN], got.weights, self._alpha(state)
        return {name: alpha * v[name] + (1 - alpha) * w[name] for name in v}

    def _alpha(self, state: State) -> Any:
        return state[_ALPHA]["value"] if _ALPHA in state else self.alpha
