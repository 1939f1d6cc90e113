"""Local fine-tuning: each client takes a few steps from the global model on its own data.

Source: Yu, Bagdasaryan, Shmatikov, "Salvaging Federated Learning by Local Adaptation", 2020,
section 3.1 (fine-tuning), https://arxiv.org/abs/2002.04758.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from algorithms._advice import plain_steps
from algorithms.base import Arrays, Family, Local, Received, State
from algorithms.fedavg import FedAvg
from runtime.bounds import MAX_SIZE
from runtime.records import Bounds


@dataclass(frozen=True)
class FineTuning(FedAvg):
    """FedAvg, after which each client fine-tunes the global model for itself.

    Attributes:
        fine_tuning_steps: the number of gradient steps, each on the whole of a client's data.
    """

    family: ClassVar[Family] = "personal"

    fine_tuning_steps: Annotated[int, Bounds(least=0, most=MAX_SIZE)] = 10

    def advice(self, training: Mapping[str, Any]) -> str:
        """Tell that personal models are not trained by the optimiser."""
        return plain_steps(training)

    def personal(self, got: Received, state: State, local: Local) -> Arrays | None:
        """Return the global weights after ``fine_tuning_steps`` of ``w - lr * F'(w)``."""
        if self.fine_tuning_steps == 0:
            return None
        w = got.weights
        for _ in range(self.fine_tuning_steps):
            g = local.gradient(w)
            w = {**w, **{name: w[name] - local.learning_rate * g[name] for name in g}}
        return w
