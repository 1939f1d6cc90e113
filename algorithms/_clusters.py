"""What algorithms with a global model for each cluster of clients share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from algorithms.base import Algorithm, Arrays, Family, Local, Received
from runtime.records import Bounds


@dataclass(frozen=True)
class ClusterModels(Algorithm):
    """Some global models, ``model_0`` and so on, each a vector of the server that clients get.

    Attributes:
        clusters: the number of models.
    """

    family: ClassVar[Family] = "clusters"

    clusters: Annotated[int, Bounds(least=1, most=64)] = 2

    @property
    def sends(self) -> tuple[str, ...]:
        """The change of each cluster's model; a client sends one of them."""
        return tuple(f"model_{number}" for number in range(self.clusters))

    @property
    def broadcasts(self) -> tuple[str, ...]:
        """All clusters' models."""
        return self.sends

    def model(self, got: Received, number: int) -> Arrays:
        """Return a cluster's model."""
        return {**got.weights, **got.vectors[self.sends[number]]}

    def change(self, w: Arrays, got: Received, number: int) -> Arrays:
        """Return how a cluster's model changed, without the weights that did not.

        A model may hold infinite constants, such as an attention mask: their difference is NaN.
        """
        before = self.model(got, number)
        return {name: w[name] - before[name] for name in w if (w[name] != before[name]).any()}

    def best(self, got: Received, local: Local, count: int) -> int:
        """Return the cluster, of the first ``count``, whose model has the lowest loss."""
        losses = [local.loss(self.model(got, number)) for number in range(count)]
        return losses.index(min(losses))
