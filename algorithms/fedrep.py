"""FedRep: a shared representation under personal heads, which are trained in turn.

Source: Collins et al., "Exploiting Shared Representations for Personalized Federated Learning",
ICML 2021, Algorithm 1, https://arxiv.org/abs/2102.07078.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from algorithms.base import Arrays, Batch, Local, Received, State
from algorithms.fedper import FedPer
from runtime.records import Bounds


@dataclass(frozen=True)
class FedRep(FedPer):
    """FedPer whose clients train the head first, and then the layers below it.

    Attributes:
        head_share: the share of a round's steps that the head is trained for; the paper's
            experiments have ten epochs of the head before one or five of the representation.
    """

    head_share: Annotated[float, Bounds(least=0, below=1)] = 0.5

    def direction(
        self, batch: Batch, w: Arrays, got: Received, state: State, local: Local
    ) -> tuple[Arrays, State]:
        """Return the gradient for the head in the first steps, then that for all else.

        The last step is always one of the representation.
        """
        g = batch.gradient(w)
        head_steps = min(round(self.head_share * local.steps), local.steps - 1)
        is_head_step = batch.number < head_steps
        return {name: g[name] for name in g if (name in local.head) == is_head_step}, state
