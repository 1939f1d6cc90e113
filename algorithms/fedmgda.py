"""FedMGDA+: the server goes where no client's loss grows, whatever the sizes of the updates.

Source: Hu, Shaloudegi, Zhang, Yu, "Federated Learning Meets Multi-Objective Optimization", IEEE
Transactions on Network Science and Engineering 2022, Algorithm 1 and problem 13,
https://arxiv.org/abs/2006.11489.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray

from algorithms.base import UPDATE, Algorithm, Blocks, Family, Flat, Mean, Report, Scalars
from runtime.records import Bounds

Floats = NDArray[np.float64]
_STEPS = 2_000
_PRECISION = 1e-12


@dataclass(frozen=True)
class FedMGDA(Algorithm):
    """The shortest point between the updates, each of which is scaled to length 1 first.

    Attributes:
        epsilon: how far a client's weight may be from its share of the examples; 0 is FedAvg of
            normalised updates, and 1 lets the server choose freely.
        server_learning_rate: how long a step is at most, since no update is longer than 1.
    """

    family: ClassVar[Family] = "fairness"

    epsilon: Annotated[float, Bounds(least=0, most=1)] = 0.1
    server_learning_rate: Annotated[float, Bounds(above=0)] = 1.0

    def factors(self, gram: Flat, reports: Sequence[Report]) -> Sequence[float]:
        """Return ``lambda_k / |update_k|``, with the lambdas that make their sum shortest.

        An update of zeros is left out: it would be the shortest point.
        """
        norms = np.sqrt(np.diag(gram))
        found = np.zeros(len(norms))
        sent = norms > 0
        if not sent.any():
            return found.tolist()
        examples = np.array([report.num_examples for report in reports], np.float64)[sent]
        lengths = norms[sent]
        cosines = gram[np.ix_(sent, sent)] / lengths[:, None] / lengths
        around = examples / examples.sum()
        low, high = np.maximum(around - self.epsilon, 0), np.minimum(around + self.epsilon, 1)
        found[sent] = shortest(cosines, around, low, high) / lengths
        return found.tolist()

    def aggregate(
        self, weights: Flat, mean: Mean, state: Blocks, scalars: Scalars
    ) -> tuple[Flat, dict[str, Flat]]:
        """Return the weights after a step along the shortest point."""
        step = self.server_learning_rate * mean.vectors[UPDATE]
        return super().aggregate(weights, Mean({UPDATE: step}), state, scalars)


def shortest(gram: Floats, start: Floats, low: Floats, high: Floats) -> Floats:
    """Return the shares between ``low`` and ``high``, together 1, whose point is shortest.

    By accelerated projected gradients, which begin anew where they would go up again.

    Args:
        gram: dot products of the vectors, [vectors, vectors].
        start: shares within the bounds, together 1.
    """
    rate = 1 / max(float(np.linalg.eigvalsh(gram)[-1]), _PRECISION)
    shares, ahead, momentum = start, start, 1.0
    for _ in range(_STEPS):
        after = _projected(ahead - rate * (gram @ ahead), low, high)
        if (ahead - after) @ (after - shares) > 0:
            momentum = 1.0
        following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        moved = after - shares
        ahead = after + (momentum - 1) / following * moved
        shares, momentum = after, following
        if np.abs(moved).max() < _PRECISION:
            break
    return shares


def _projected(shares: Floats, low: Floats, high: Floats) -> Floats:
    """Return the nearest shares between the bounds that are together 1."""
    least, most = float((shares - high).min()), float((shares - low).max())
    for _ in range(100):
        middle = (least + most) / 2
        if np.clip(shares - middle, low, high).sum() > 1:
            least = middle
        else:
            most = middle
    return np.clip(shares - most, low, high)
