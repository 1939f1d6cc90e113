"""FedBABU: the body is trained in rounds, the head only when the model is made personal.

Source: Oh, Kim, Yun, "FedBABU: Toward Enhanced Representation for Federated Image Classification",
ICLR 2022, Algorithm 1, https://arxiv.org/abs/2106.06042.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from algorithms.base import Arrays, Batch, Local, Need, Received, State
from algorithms.finetune import FineTuning


@dataclass(frozen=True)
class FedBABU(FineTuning):
    """FedAvg under a head that stays as it began; each client then fine-tunes both.

    The global model predicts little by itself, since nobody trains its head.
    """

    needs: ClassVar[tuple[Need, ...]] = ("head",)

    def direction(
        self, batch: Batch, w: Arrays, got: Received, state: State, local: Local
    ) -> tuple[Arrays, State]:
        """Return the gradient for the body alone."""
        g = batch.gradient(w)
        return {name: g[name] for name in g if name not in local.head}, state
