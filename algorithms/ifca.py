"""IFCA: several global models, of which each client trains the one that fits its data best.

Source: Ghosh et al., "An Efficient Framework for Clustered Federated Learning", NeurIPS 2020,
Algorithm 1 with model averaging, https://arxiv.org/abs/2006.04088.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from algorithms.base import (
    Algorithm,
    Arrays,
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

_CHOSEN = "chosen"


@dataclass(frozen=True)
class IFCA(Algorithm):
    """A model for each of some clusters, which clients choose by the loss on their own data.

    The exported global model is the mean of the clusters' models.

    Attributes:
        clusters: the number of models.
        spread: the standard deviation of the noise that tells the first models apart. With much
            of it all clients choose the model that has none. Whether every cluster is found
            depends on the first models, as in the paper: another seed gives others.
    """

    family: ClassVar[Family] = "clusters"

    clusters: Annotated[int, Bounds(least=1, most=64)] = 2
    spread: Annotated[float, Bounds(least=0)] = 0.01

    @property
    def sends(self) -> tuple[str, ...]:
        """The change of each cluster's model; a client sends one of them."""
        return tuple(f"model_{number}" for number in range(self.clusters))

    @property
    def broadcasts(self) -> tuple[str, ...]:
        """All clusters' models."""
        return self.sends

    def start(self, got: Received, state: State, local: Local) -> tuple[Arrays, State]:
        """Return the model of the lowest loss, ``argmin over j of F(model_j)``."""
        number = self._chosen(got, local)
        w = {**got.weights, **got.vectors[self.sends[number]]}
        zero = next(iter(w.values())).reshape(-1)[:0].sum()
        return w, {**state, _CHOSEN: {"value": zero + number}}

    def finish(self, w: Arrays, got: Received, state: State, local: Local) -> tuple[Sent, State]:
        """Return the change of the chosen model."""
        name = self.sends[int(state[_CHOSEN]["value"])]
        before = {**got.weights, **got.vectors[name]}
        return Sent({name: {each: w[each] - before[each] for each in w}}), state

    def personal(self, got: Received, state: State, local: Local) -> Arrays | None:
        """Return the model of the lowest loss."""
        return {**got.weights, **got.vectors[self.sends[self._chosen(got, local)]]}

    def init(self, weights: Flat, start: int, seed: int) -> dict[str, Flat]:
        """Return version 0 for each cluster, with noise on all but the first."""
        models = {self.sends[0]: weights}
        for number, name in enumerate(self.sends[1:], 1):
            noise = np.random.default_rng([seed, number, start]).standard_normal(len(weights))
            models[name] = (weights + self.spread * noise).astype(weights.dtype, copy=False)
        return models

    def aggregate(
        self, weights: Flat, mean: Mean, state: Blocks, scalars: Scalars
    ) -> tuple[Flat, dict[str, Flat]]:
        """Return the mean of the models, each after the mean change of those that chose it."""
        models = {
            name: (state[name] + mean.vectors[name]).astype(weights.dtype, copy=False)
            for name in self.sends
        }
        total = sum(models.values()) / self.clusters
        return np.asarray(total, weights.dtype), models

    def _chosen(self, got: Received, local: Local) -> int:
        losses = [local.loss({**got.weights, **got.vectors[name]}) for name in self.sends]
        return losses.index(min(losses))
