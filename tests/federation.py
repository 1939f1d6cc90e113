"""A federation in memory, to try an algorithm's halves on problems whose solutions are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from algorithms.base import Algorithm, Arrays, Mean, Received, Report, Sent, State, initial

Array = NDArray[np.float64]
NAMES = ("body", "head")


def split(vector: Any) -> dict[str, Any]:
    """Return a vector's first half as the weight "body", its second half as "head"."""
    middle = len(vector) // 2
    return {"body": vector[:middle], "head": vector[middle:]}


def joined(arrays: Arrays, size: int) -> Array:
    """Return named weights as one vector, zeros for those that are left out."""
    zeros = split(np.zeros(size))
    return np.concatenate([np.asarray(arrays.get(name, zeros[name])) for name in NAMES])


@dataclass(frozen=True)
class Quadratic:
    """The loss ``1/2 sum(a * (w - b)^2)``, the same for every batch: a client's data.

    It serves as the batch of every step and as the whole of the local data.
    """

    a: Array
    b: Array
    num_examples: int = 1
    steps: int = 5
    learning_rate: float = 0.1
    round: int = 1
    seed: int = 0
    width: float = 1.0
    number: int = 0
    head: frozenset[str] = frozenset({"head"})
    norms: frozenset[str] = frozenset({"body"})
    adapters: frozenset[str] = frozenset({"head"})

    def gradient(self, w: Arrays) -> dict[str, Any]:
        """Return ``a * (w - b)``."""
        return split(self.a * (joined(w, len(self.a)) - self.b))

    def loss(self, w: Arrays) -> float:
        """Return the loss."""
        return float(0.5 * (self.a * (joined(w, len(self.a)) - self.b) ** 2).sum())

    def halves(self) -> tuple[Quadratic, Quadratic]:
        """Return itself twice."""
        return self, self


@dataclass
class Federation:
    """The server and the clients of one run; ``states`` are what the clients keep."""

    algorithm: Algorithm
    weights: Any
    seed: int = 0
    scalars: dict[str, float] = field(default_factory=dict)
    vectors: dict[str, Any] = field(default_factory=dict)
    states: dict[int, State] = field(default_factory=dict)
    round: int = 0

    def __post_init__(self) -> None:
        self.vectors = initial(self.algorithm, self.weights, self.seed)

    def received(self) -> Received:
        """Return what every client gets now."""
        names = self.algorithm.broadcasts
        return Received(
            split(self.weights),
            {name: split(self.vectors[name]) for name in names if name in self.vectors},
            {name: self.scalars[name] for name in names if name in self.scalars},
        )

    def train(self, client: Quadratic, state: State) -> tuple[Sent, State]:
        """Return what a client sends of one round of plain gradient descent."""
        algorithm, got = self.algorithm, self.received()
        w, state = algorithm.start(got, state, client)
        for number in range(client.steps):
            batch = Quadratic(client.a, client.b, number=number)
            g, state = algorithm.direction(batch, w, got, state, client)
            w = {
                name: w[name] - client.learning_rate * g[name] if name in g else w[name]
                for name in w
            }
        return algorithm.finish(w, got, state, client)

    def run_round(self, clients: Sequence[Quadratic], taking_part: Sequence[int]) -> None:
        """Train with some of the clients and make the next version."""
        self.round += 1
        algorithm, sent, reports = self.algorithm, [], []
        for index in taking_part:
            update, state = self.train(clients[index], self.states.get(index, {}))
            self.states[index] = state
            sent.append(update)
            reports.append(Report(str(index), clients[index].num_examples, update.scalars))
        weights = [algorithm.weight(report, self.scalars) for report in reports]
        mean = Mean(
            self._combined(sent, reports)
            if algorithm.needs_updates
            else {name: self._mean(name, sent, weights) for name in algorithm.sends},
            {
                name: np.average(
                    [each.scalars[name] for each in sent if name in each.scalars],
                    weights=[
                        w for each, w in zip(sent, weights, strict=True) if name in each.scalars
                    ],
                )
                for name in algorithm.reports
                if any(name in each.scalars for each in sent)
            },
            len(sent),
            len(clients),
        )
        measured = algorithm.measure(self.weights, mean, self.vectors)
        bare = Mean({}, mean.scalars, mean.updates, mean.population)
        self.scalars = dict(algorithm.advance(bare, reports, self.scalars, measured))
        self.weights, self.vectors = algorithm.aggregate(
            self.weights, mean, self.vectors, self.scalars
        )

    def _combined(self, sent: Sequence[Sent], reports: Sequence[Report]) -> dict[str, Array]:
        size = len(self.weights)
        (name,) = self.algorithm.sends
        updates = np.array([joined(each.vectors[name], size) for each in sent])
        factors = self.algorithm.factors(updates @ updates.T, reports)
        return {name: np.array(factors) @ updates}

    def _mean(self, name: str, sent: Sequence[Sent], weights: Sequence[float]) -> Array:
        size = len(self.weights)
        pairs = [
            (joined(each.vectors[name], size), weight)
            for each, weight in zip(sent, weights, strict=True)
            if name in each.vectors
        ]
        if not pairs:
            return np.zeros(size)
        return np.average([vector for vector, _ in pairs], axis=0, weights=[w for _, w in pairs])
