"""Per-FedAvg: a global model from which one step on a client's data makes a good personal one.

Source: Fallah, Mokhtari, Ozdaglar, "Personalized Federated Learning with Theoretical Guarantees:
A Model-Agnostic Meta-Learning Approach", NeurIPS 2020, equation 3 and Algorithm 1, with the
first-order and Hessian-free forms of section 5, https://arxiv.org/abs/2002.07948. A client's
objective is ``F(w - alpha * F'(w))``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from algorithms.base import Arrays, Batch, Family, Local, Received, State
from algorithms.fedavg import FedAvg
from runtime.records import Bounds


@dataclass(frozen=True)
class PerFedAvg(FedAvg):
    """FedAvg of the loss after one gradient step, which each client takes to predict.

    Attributes:
        alpha: the learning rate of that step; 0 is FedAvg.
        hessian_step: the paper's ``delta``: how far from the weights the gradients are taken that
            stand for the second derivative; 0 leaves it out, which is the first-order form.
    """

    family: ClassVar[Family] = "personal"

    alpha: Annotated[float, Bounds(least=0)] = 0.01
    hessian_step: Annotated[float, Bounds(least=0)] = 0.0

    def direction(
        self, batch: Batch, w: Arrays, got: Received, state: State, local: Local
    ) -> tuple[Arrays, State]:
        """Return ``h - alpha * F''(w) h`` where ``h`` is ``f'(w - alpha * f'(w))``.

        The two gradients, and those for ``F''``, are of different examples.
        """
        if self.alpha == 0:
            return batch.gradient(w), state
        inner, outer = batch.halves()
        if self.hessian_step == 0:
            return outer.gradient(self._moved(w, inner.gradient(w), -self.alpha)), state
        outer, third = outer.halves()
        h = outer.gradient(self._moved(w, inner.gradient(w), -self.alpha))
        ahead = third.gradient(self._moved(w, h, self.hessian_step))
        behind = third.gradient(self._moved(w, h, -self.hessian_step))
        rate = self.alpha / (2 * self.hessian_step)
        return {name: h[name] - rate * (ahead[name] - behind[name]) for name in h}, state

    def personal(self, got: Received, state: State, local: Local) -> Arrays | None:
        """Return ``w - alpha * F'(w)``."""
        if self.alpha == 0:
            return None
        return self._moved(got.weights, local.gradient(got.weights), -self.alpha)

    def _moved(self, w: Arrays, g: Arrays, by: float) -> Arrays:
        return {**w, **{name: w[name] + by * g[name] for name in g}}
