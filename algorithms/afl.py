"""AFL: the weights are trained for the mixture of clients on which they are worst.

Source: Mohri, Sivek, Suresh, "Agnostic Federated Learning", ICML 2019, problem 4 and algorithm
STOCHASTIC-AFL, https://arxiv.org/abs/1902.00146. Clients are the domains; they may take several
local steps. The server keeps a number for each client, so a run has at most 1,023 of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from algorithms.base import (
    Arrays,
    Family,
    Flat,
    Local,
    Mean,
    Received,
    Report,
    Scalars,
    Sent,
    State,
)
from algorithms.fedavg import FedAvg
from runtime.bounds import MAX_SCALARS
from runtime.errors import ConfigError
from runtime.records import Bounds

LOSS = "loss"
OTHERS = "others"
_LEAST_WEIGHT = 2.0**-20


@dataclass(frozen=True)
class AFL(FedAvg):
    """FedAvg whose clients' weights grow with their losses, to serve the worst mixture of them.

    Attributes:
        mixture_learning_rate: how fast clients' weights follow their losses.
    """

    family: ClassVar[Family] = "fairness"

    mixture_learning_rate: Annotated[float, Bounds(least=0)] = 0.1

    @property
    def reports(self) -> tuple[str, ...]:
        """The loss at the global weights."""
        return (LOSS,)

    def finish(self, w: Arrays, got: Received, state: State, local: Local) -> tuple[Sent, State]:
        """Send the loss at the global weights, too."""
        sent, state = super().finish(w, got, state, local)
        return Sent(sent.vectors, {LOSS: local.loss(got.weights)}), state

    def weight(self, report: Report, scalars: Scalars) -> float:
        """Return ``lambda_k``, equal ones at first.

        None is 0, so that a cohort always has a mean.
        """
        return max(scalars.get(_key(report), scalars.get(OTHERS, 1.0)), _LEAST_WEIGHT)

    def advance(
        self, mean: Mean, reports: Sequence[Report], scalars: Scalars, measured: Scalars
    ) -> Scalars:
        """Return the projection of ``lambda + mixture_learning_rate * losses`` onto the simplex.

        Clients that never took part share one value.

        Raises:
            ConfigError: the run has more clients than the server keeps numbers.
        """
        if mean.population >= MAX_SCALARS:
            raise ConfigError(
                f"afl keeps a number for each client, at most {MAX_SCALARS - 1}; this run knows "
                f"{mean.population}: take qfedavg or term"
            )
        if self.mixture_learning_rate == 0:
            return scalars
        others = scalars.get(OTHERS, 1 / mean.population)
        known = {name: each for name, each in scalars.items() if name != OTHERS}
        for report in reports:
            gain = self.mixture_learning_rate * report.scalars[LOSS]
            known[_key(report)] = known.get(_key(report), others) + gain
        rest = max(mean.population - len(known), 0)
        found = _on_simplex(np.array([*known.values(), *[others] * rest]))
        if rest:
            others = float(found[-1])
        return {**dict(zip(known, found.tolist(), strict=False)), OTHERS: others}


def _key(report: Report) -> str:
    return f"client {report.device_id}"


def _on_simplex(values: Flat) -> Flat:
    """Return the nearest point with no value below 0 and a sum of 1.

    Source: Duchi et al., "Efficient Projections onto the l1-Ball for Learning in High Dimensions",
    ICML 2008, Figure 1.
    """
    # the same point, and no value is too large to be summed
    values = values - values.max()
    falling = np.sort(values)[::-1]
    excess = (np.cumsum(falling) - 1) / np.arange(1, len(values) + 1)
    shift: float = excess[np.flatnonzero(falling > excess)[-1]]
    return (values - shift).clip(0.0)
