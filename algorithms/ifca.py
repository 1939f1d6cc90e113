"""IFCA: several global models, of which each client trains the one that fits its data best.

Source: Ghosh et al., "An Efficient Framework for Clustered Federated Learning", NeurIPS 2020,
Algorithm 1 with model averaging, https://arxiv.org/abs/2006.04088.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from algorithms._clusters import ClusterModels
from algorithms.base import Arrays, Blocks, Flat, Local, Mean, Received, Scalars, Sent, State
from runtime.records import Bounds

_CHOSEN = "chosen"


@dataclass(frozen=True)
class IFCA(ClusterModels):
    """A model for each of some clusters, which clients choose by the loss on their own data.

    The exported global model is the mean of the clusters' models.

    Attributes:
        clusters: the number of models.
        spread: the standard deviation of the noise that tells the first models apart. With much
            of it all clients choose the model that has none. Whether every cluster is found
            depends on the first models, as in the paper: another seed gives others.
    """

    spread: Annotated[float, Bounds(least=0)] = 0.01

    def start(self, got: Received, state: State, local: Local) -> tuple[Arrays, State]:
        """Return the model of the lowest loss, ``argmin over j of F(model_j)``."""
        number = self.best(got, local, self.clusters)
        zero = next(iter(got.weights.values())).reshape(-1)[:0].sum()
        return self.model(got, number), {**state, _CHOSEN: {"value": zero + number}}

    def finish(self, w: Arrays, got: Received, state: State, local: Local) -> tuple[Sent, State]:
        """Return the change of the chosen model."""
        number = int(state[_CHOSEN]["value"])
        return Sent({self.sends[number]: self.change(w, got, number)}), state

    def personal(self, got: Received, state: State, local: Local) -> Arrays | None:
        """Return the model of the lowest loss."""
        return self.model(got, self.best(got, local, self.clusters))

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
