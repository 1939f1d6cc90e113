"""FedNTD: clients keep what the global model knows of the classes that are not an example's own.

Source: Lee et al., "Preservation of the Global Knowledge by Not-True Distillation in Federated
Learning", NeurIPS 2022, section 4, https://arxiv.org/abs/2106.03097. As in the authors' code, the
distillation loss has the factor ``tau^2``, which is 1 by default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from algorithms._classes import rows_of_classes
from algorithms.base import Arrays, Family, Forward, Local, Need, Received, State
from algorithms.fedavg import FedAvg
from runtime.records import Bounds


@dataclass(frozen=True)
class FedNTD(FedAvg):
    """FedAvg whose clients distil the global model's scores of all classes but the true one.

    Attributes:
        beta: how much the distillation counts; 0 is FedAvg.
        tau: the temperature of the probabilities that are compared.
    """

    family: ClassVar[Family] = "drift"
    needs: ClassVar[tuple[Need, ...]] = ("loss",)

    beta: Annotated[float, Bounds(least=0)] = 1.0
    tau: Annotated[float, Bounds(above=0)] = 1.0

    def loss(self, forward: Forward, w: Arrays, got: Received, state: State, local: Local) -> Any:
        """Return ``loss + beta * tau^2 * KL(global || local)``; with ``beta`` 0 the task's loss.

        The probabilities are those of the classes that are not true, at temperature ``tau``.
        """
        if self.beta == 0:
            return forward.loss
        mine, theirs = (
            self._not_true(outputs.to(forward.loss.dtype), forward.targets)
            for outputs in (forward.outputs, forward.at(got.weights)[0])
        )
        divergence = (theirs.exp() * (theirs - mine)).sum(1).mean()
        return forward.loss + self.beta * self.tau**2 * divergence

    def _not_true(self, outputs: Any, targets: Any) -> Any:
        """Return the log of the probabilities of the classes that are not true."""
        rows, labels = rows_of_classes(outputs, targets)
        others = rows.new_ones(rows.shape).scatter(1, labels[:, None], 0).bool()
        return (rows[others].reshape(len(rows), -1) / self.tau).log_softmax(1)
