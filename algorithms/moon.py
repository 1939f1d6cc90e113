"""MOON: a client's features are drawn to those of the global model, away from its own last ones.

Source: Li, He, Song, "Model-Contrastive Federated Learning", CVPR 2021, equation 3 and Algorithm 1,
https://arxiv.org/abs/2103.16257. The features are what goes into the head, so that a projection
head, where wanted, is a layer of the model. A client without its state, new or after a loss, trains
on the task's loss alone in that round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from algorithms.base import Arrays, Family, Forward, Local, Need, Received, Sent, State
from algorithms.fedavg import FedAvg
from runtime.records import Bounds

PREVIOUS = "previous"
_LEAST = 1e-16


@dataclass(frozen=True)
class Moon(FedAvg):
    """FedAvg whose clients' features are contrasted with the global and their previous model's.

    Attributes:
        mu: how much the contrast counts; 0 is FedAvg.
        tau: the temperature of the contrast.
    """

    family: ClassVar[Family] = "drift"
    needs: ClassVar[tuple[Need, ...]] = ("head", "loss")

    mu: Annotated[float, Bounds(least=0)] = 1.0
    tau: Annotated[float, Bounds(above=0)] = 0.5

    def loss(self, forward: Forward, w: Arrays, got: Received, state: State, local: Local) -> Any:
        """Return ``loss - mu * log(e^(s / tau) / (e^(s / tau) + e^(s' / tau)))``.

        ``s`` and ``s'`` are the cosines of the features with the global model's and with those of
        the client's previous one. With ``mu`` 0 it is the task's loss.
        """
        if self.mu == 0 or PREVIOUS not in state:
            return forward.loss
        mine, kind = forward.features, forward.loss.dtype
        near, far = (
            _cosine(mine.to(kind), forward.at(there)[1].to(kind)) / self.tau
            for there in (got.weights, state[PREVIOUS])
        )
        return forward.loss + self.mu * (near.logaddexp(far) - near).mean()

    def finish(self, w: Arrays, got: Received, state: State, local: Local) -> tuple[Sent, State]:
        """Keep the client's weights, for its next round."""
        sent, state = super().finish(w, got, state, local)
        return sent, {**state, PREVIOUS: dict(w)} if self.mu else state


def _cosine(a: Any, b: Any) -> Any:
    # bounded before the root, whose derivative at 0 is infinite
    return (a * b).sum(1) / ((a * a).sum(1) * (b * b).sum(1)).clamp(min=_LEAST) ** 0.5
