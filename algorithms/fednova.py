"""FedNova: changes are averaged per local step, so that clients with more steps count no more.

Source: Wang et al., "Tackling the Objective Inconsistency Problem in Heterogeneous Federated
Optimization", NeurIPS 2020, section 4, https://arxiv.org/abs/2007.07481. Its clients run plain
SGD here, where the norm of a client's ``a_i`` is its number of steps ``tau_i``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from algorithms._advice import plain_sgd
from algorithms._trained import with_trained, without_trained
from algorithms.base import (
    UPDATE,
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
from algorithms.fedavg import FedAvg

STEPS = "steps"


@dataclass(frozen=True)
class FedNova(FedAvg):
    """FedAvg whose clients may take unequal numbers of steps: their changes are normalised."""

    family: ClassVar[Family] = "drift"

    @property
    def reports(self) -> tuple[str, ...]:
        """The number of local steps."""
        return (STEPS,)

    def advice(self, training: Mapping[str, Any]) -> str:
        """Warn of local momentum and Adam."""
        return plain_sgd(training, "FedNova")

    def direction(
        self, batch: Batch, w: Arrays, got: Received, state: State, local: Local
    ) -> tuple[Arrays, State]:
        """Return the gradient; note which weights have one."""
        g = batch.gradient(w)
        return g, with_trained(state, g)

    def finish(self, w: Arrays, got: Received, state: State, local: Local) -> tuple[Sent, State]:
        """Send ``(y_i - x) / tau_i`` and ``tau_i``."""
        state, trained = without_trained(state)
        sent, state = super().finish(w, got, state, local)
        change = sent.vectors[UPDATE]
        normalised = {name: change[name] / local.steps for name in trained}
        return Sent({UPDATE: {**change, **normalised}}, {STEPS: float(local.steps)}), state

    def aggregate(
        self, weights: Flat, mean: Mean, state: Blocks, scalars: Scalars
    ) -> tuple[Flat, dict[str, Flat]]:
        """Return ``x + server_learning_rate * tau_eff * mean``; ``tau_eff`` is the mean ``tau_i``.

        With equal steps that is FedAvg, exactly where their number is a power of two.
        """
        change = mean.scalars[STEPS] * mean.vectors[UPDATE]
        return super().aggregate(weights, Mean({UPDATE: change}), state, scalars)
