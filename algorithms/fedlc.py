"""FedLC: a client's scores are calibrated by how many examples of each class it has.

Source: Zhang et al., "Federated Learning with Label Distribution Skew via Logits Calibration",
ICML 2022, section 4, https://arxiv.org/abs/2209.00189.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from algorithms._classes import rows_of_classes
from algorithms.base import Arrays, Family, Forward, Local, Need, Received, Sent, State
from algorithms.fedavg import FedAvg
from runtime.errors import ConfigError
from runtime.records import Bounds

COUNTS = "label_counts"
_ABSENT = 1e-8


@dataclass(frozen=True)
class FedLC(FedAvg):
    """FedAvg whose clients' losses ask a wider margin for classes that they have little of.

    Attributes:
        tau: how wide the margins are; 0 is FedAvg.
    """

    family: ClassVar[Family] = "drift"
    needs: ClassVar[tuple[Need, ...]] = ("head", "loss")

    tau: Annotated[float, Bounds(least=0)] = 1.0

    def start(self, got: Received, state: State, local: Local) -> tuple[Arrays, State]:
        """Count the labels ``n_c``.

        Where the head is zeros, every class has the same score, and the cross entropy's gradient
        with respect to the bias of class c is ``1 / classes - n_c / n``.

        Raises:
            ConfigError: the head has no bias.
        """
        w, state = super().start(got, state, local)
        if self.tau == 0:
            return w, state
        g = local.gradient({**w, **{name: w[name] * 0 for name in local.head}})
        biases = [g[name] for name in g if name in local.head and g[name].ndim == 1]
        if not biases:
            raise ConfigError("FedLC counts labels by the bias of the model's head, which has none")
        shares = 1 / len(biases[-1]) - biases[-1]
        return w, {**state, COUNTS: {"value": abs((shares * local.num_examples).round())}}

    def loss(self, forward: Forward, w: Arrays, got: Received, state: State, local: Local) -> Any:
        """Return the cross entropy of ``f_c - tau * n_c^(-1/4)``; the task's loss for ``tau`` 0."""
        if COUNTS not in state:
            return forward.loss
        rows, labels = rows_of_classes(forward.outputs, forward.targets)
        margins = self.tau * (state[COUNTS]["value"] + _ABSENT) ** -0.25
        scores = rows.to(forward.loss.dtype) - margins
        return -scores.log_softmax(1).gather(1, labels[:, None]).mean()

    def finish(self, w: Arrays, got: Received, state: State, local: Local) -> tuple[Sent, State]:
        """Send what FedAvg's clients send, and keep nothing: the labels are counted each round."""
        sent, state = super().finish(w, got, state, local)
        return sent, {name: arrays for name, arrays in state.items() if name != COUNTS}
