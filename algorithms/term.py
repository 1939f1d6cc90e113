"""TERM: clients count by the exponential of their loss, more for a positive tilt.

Source: Li et al., "Tilted Empirical Risk Minimization", ICLR 2021, equation 2 with its groups being
the clients, https://arxiv.org/abs/2007.01162. The gradient of the tilted loss is the mean of the
clients' gradients with weights of ``exp(t * F_k)`` (Lemma 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from algorithms.base import Arrays, Family, Local, Mean, Received, Report, Scalars, Sent, State
from algorithms.fedavg import FedAvg
from runtime.records import Bounds

LOSS = "loss"
TILTED = "tilted_loss"
_MOST = 10.0


@dataclass(frozen=True)
class TERM(FedAvg):
    """FedAvg for a tilted mean of the clients' losses: fair above 0, robust to bad ones below.

    Attributes:
        t: the tilt: above 0 larger losses count for more, below 0 for less; 0 is FedAvg.
    """

    family: ClassVar[Family] = "fairness"

    t: Annotated[float, Bounds(least=-1000, most=1000)] = 0.1

    @property
    def reports(self) -> tuple[str, ...]:
        """The loss at the global weights."""
        return (LOSS,)

    def finish(self, w: Arrays, got: Received, state: State, local: Local) -> tuple[Sent, State]:
        """Send the loss at the global weights, too."""
        sent, state = super().finish(w, got, state, local)
        return Sent(sent.vectors, {LOSS: local.loss(got.weights)}), state

    def weight(self, report: Report, scalars: Scalars) -> float:
        """Return ``n_k * exp(t * (F_k - R))``; with ``t`` 0 the number of examples.

        ``R``, the tilted loss of the round before, leaves the mean as it is. The exponent is held
        within 10, so that no client counts nothing, or all.
        """
        exponent = self.t * (report.scalars[LOSS] - scalars.get(TILTED, 0.0))
        return report.num_examples * math.exp(min(max(exponent, -_MOST), _MOST))

    def advance(
        self, mean: Mean, reports: Sequence[Report], scalars: Scalars, measured: Scalars
    ) -> Scalars:
        """Return ``R = log(mean of exp(t * F_k)) / t``."""
        if self.t == 0:
            return scalars
        exponents = [self.t * report.scalars[LOSS] for report in reports]
        most, examples = max(exponents), sum(report.num_examples for report in reports)
        shares = (
            report.num_examples / examples * math.exp(each - most)
            for report, each in zip(reports, exponents, strict=True)
        )
        return {TILTED: (most + math.log(sum(shares))) / self.t}
