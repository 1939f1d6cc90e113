"""q-FedAvg: clients with larger losses count more, so that accuracies spread less.

Source: Li et al., "Fair Resource Allocation in Federated Learning", ICLR 2020, objective 2 and
Algorithm 2, https://arxiv.org/abs/1905.10497. ``L`` is one over the local learning rate, as there;
both sums are divided by it here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from algorithms._trained import squared_norm, with_trained, without_trained
from algorithms.base import (
    UPDATE,
    Algorithm,
    Arrays,
    Batch,
    Blocks,
    Family,
    Flat,
    Local,
    Mean,
    Received,
    Scalars,
    Sent,
    State,
)
from runtime.records import Bounds

BOUND = "h"
_LEAST_LOSS = 1e-10


@dataclass(frozen=True)
class QFedAvg(Algorithm):
    """FedAvg for the mean of the clients' losses to the power q + 1: fairer the larger q is.

    Attributes:
        q: how much larger losses count for more; 0 is FedAvg.
    """

    family: ClassVar[Family] = "fairness"

    q: Annotated[float, Bounds(least=0, most=20)] = 0.2

    @property
    def reports(self) -> tuple[str, ...]:
        """The estimate ``h_k`` of the Lipschitz constant of ``F^(q + 1) / (q + 1)``."""
        return (BOUND,)

    def direction(
        self, batch: Batch, w: Arrays, got: Received, state: State, local: Local
    ) -> tuple[Arrays, State]:
        """Return the gradient; note which weights have one."""
        g = batch.gradient(w)
        return g, with_trained(state, g)

    def finish(self, w: Arrays, got: Received, state: State, local: Local) -> tuple[Sent, State]:
        """Send ``F^q * change`` and ``h = q * F^(q - 1) * L * |change|^2 + F^q``.

        ``F`` is the loss at the global weights.
        """
        state, trained = without_trained(state)
        sent, state = super().finish(w, got, state, local)
        change = sent.vectors[UPDATE]
        loss = max(local.loss(got.weights), _LEAST_LOSS)
        squared = squared_norm(change, trained)
        h = self.q * loss ** (self.q - 1) / local.learning_rate * squared + loss**self.q
        scaled = {name: loss**self.q * change[name] for name in trained}
        return Sent({UPDATE: {**change, **scaled}}, {BOUND: h}), state

    def aggregate(
        self, weights: Flat, mean: Mean, state: Blocks, scalars: Scalars
    ) -> tuple[Flat, dict[str, Flat]]:
        """Return ``w + mean(F^q * change) / mean(h)``; with ``q`` 0 exactly FedAvg's."""
        change = mean.vectors[UPDATE] / mean.scalars[BOUND]
        return super().aggregate(weights, Mean({UPDATE: change}), state, scalars)
