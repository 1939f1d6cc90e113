"""pFedMe: personal models by Moreau envelopes of the clients' losses.

Source: T Dinh, Tran, Nguyen, "Personalized Federated Learning with Moreau Envelopes", NeurIPS
2020, equations 2 and 3 and Algorithm 1, https://arxiv.org/abs/2006.08848. A client's objective is
``min over v of F(v) + lam/2 * |v - w|^2``, whose gradient is ``lam * (w - v)`` at the best ``v``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from algorithms._beside import OWN, BesideFedAvg
from algorithms.base import Arrays, Batch, Local, Received, State
from runtime.bounds import MAX_SIZE
from runtime.records import Bounds


@dataclass(frozen=True)
class PFedMe(BesideFedAvg):
    """The global model steps towards personal models, which each client solves for anew.

    ``server_learning_rate`` is the paper's ``beta``.

    Attributes:
        lam: how near the personal models are held to the global one.
        personal_steps: the number of gradient steps that solve for the personal model.
        personal_learning_rate: their learning rate.
    """

    lam: Annotated[float, Bounds(above=0)] = 15.0
    personal_steps: Annotated[int, Bounds(least=1, most=MAX_SIZE)] = 5
    personal_learning_rate: Annotated[float, Bounds(above=0)] = 0.05

    def advice(self, training: Mapping[str, Any]) -> str:
        """Warn of steps that go beyond the personal model."""
        if training.get("learning_rate", 0.0) * self.lam > 1:
            most = f"{1 / self.lam:g}"
            return f"pfedme of lam {self.lam:g} needs training.learning_rate={most} or less"
        return super().advice(training)

    def direction(
        self, batch: Batch, w: Arrays, got: Received, state: State, local: Local
    ) -> tuple[Arrays, State]:
        """Return ``lam * (w - v)`` after some steps of ``v - rate * (f'(v) + lam * (v - w))``.

        The steps begin at ``w``.
        """
        v = w
        for _ in range(self.personal_steps):
            g = batch.gradient(v)
            rate = self.personal_learning_rate
            v = {name: v[name] - rate * (g[name] + self.lam * (v[name] - w[name])) for name in g}
        return {name: self.lam * (w[name] - v[name]) for name in v}, {**state, OWN: v}
