"""An algorithm's client half during one round, the same for every engine."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from algorithms.base import STATISTICS, UPDATE, Arrays, Batch, Received, Sent, State, initial
from fl_client.engines.base import flat_update, steps_of
from fl_client.models.local_round import LocalRound, LocalUpdate
from fl_client.models.parts import ModelParts
from storage.weights import Layout, Vector, Weights

_STATE = "algorithm/"


@dataclass(frozen=True)
class LocalTraining:
    """What an algorithm knows of a client's training; see :class:`algorithms.base.Local`."""

    plan: LocalRound
    num_examples: int
    parts: ModelParts
    loss_at: Callable[[Arrays], float]
    gradient_at: Callable[[Arrays], dict[str, Any]]

    @property
    def round(self) -> int:
        return self.plan.round

    @property
    def steps(self) -> int:
        return steps_of(self.plan.settings, self.num_examples)

    @property
    def learning_rate(self) -> float:
        return self.plan.settings.learning_rate

    @property
    def seed(self) -> int:
        return self.plan.local_seed

    @property
    def width(self) -> float:
        return self.plan.width

    @property
    def head(self) -> frozenset[str]:
        return self.parts.head

    @property
    def norms(self) -> frozenset[str]:
        return self.parts.norms

    @property
    def adapters(self) -> frozenset[str]:
        return self.parts.adapters

    def loss(self, w: Arrays) -> float:
        return self.loss_at(w)

    def gradient(self, w: Arrays) -> dict[str, Any]:
        return self.gradient_at(w)


class ClientHalf:
    """The algorithm of a round with what it received, its state, and the device's data.

    Args:
        got: arrays or tensors of the engine's kind, as are the state's.
    """

    def __init__(self, plan: LocalRound, got: Received, state: State, local: LocalTraining) -> None:
        self.got, self.local, self.state = got, local, state
        self._algorithm = plan.algorithm
        self._begun = state

    def frozen(self, names: Iterable[str]) -> frozenset[str]:
        """Return which of the weights the algorithm does not train."""
        is_frozen = self._algorithm.is_frozen
        return frozenset(name for name in names if is_frozen(name, self.local))

    def start(self) -> Arrays:
        """Return the weights that training starts from."""
        weights, self.state = self._algorithm.start(self.got, self.state, self.local)
        self._begun = self.state
        return weights

    def direction(self, batch: Batch, w: Arrays) -> Arrays:
        """Return what the optimiser steps along."""
        g, self.state = self._algorithm.direction(batch, w, self.got, self.state, self.local)
        return g

    def finish(self, w: Arrays, trainable: Collection[str]) -> tuple[Sent, State]:
        """Return what the device sends and keeps, the change of statistics apart."""
        sent, state = self._algorithm.finish(w, self.got, self.state, self.local)
        update = sent.vectors.get(UPDATE, {})
        statistics = {name: update[name] for name in update if name not in trainable}
        if statistics:
            update = {name: update[name] for name in update if name in trainable}
            vectors = {**sent.vectors, UPDATE: update, STATISTICS: statistics}
            sent = replace(sent, vectors=vectors)
        return sent, state

    def personal(self) -> Arrays | None:
        """Return the weights that the device predicts with, None where they are the global ones."""
        return self._algorithm.personal(self.got, self.state, self.local)

    def capture(self) -> dict[str, Any]:
        """Return the state where the steps change it; else a resumed training begins with it."""
        if self.state is self._begun:
            return {}
        return {f"{_STATE}{name}": array for name, array in flattened(self.state).items()}

    def restore(
        self, arrays: Mapping[str, NDArray[Any]], convert: Callable[[NDArray[Any]], Any]
    ) -> None:
        """Set a captured state; ``convert`` makes the engine's own kind of a copy."""
        kept = {
            name.removeprefix(_STATE): convert(array)
            for name, array in arrays.items()
            if name.startswith(_STATE)
        }
        if kept:
            self.state = nested(kept)


def received_vectors(weights: Weights, plan: LocalRound) -> dict[str, dict[str, NDArray[Any]]]:
    """Return the server's vectors that the algorithm's clients get, as named arrays.

    Before the first round the server has none yet, and both sides make them alike.
    """
    names = plan.algorithm.broadcasts
    if not names:
        return {}
    flat = plan.vectors or initial(plan.algorithm, weights.vector, plan.seed)
    return {name: shaped(flat[name], weights.layout) for name in names if name in flat}


def shaped(vector: NDArray[Any], layout: Layout) -> dict[str, NDArray[Any]]:
    """Return a vector as named arrays, which share its memory."""
    return {
        spec.name: vector[layout.offsets[spec.name]].reshape(spec.shape) for spec in layout.floats
    }


def nested(arrays: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return arrays by ``name/weight`` as a client's state."""
    found: dict[str, dict[str, Any]] = {}
    for path, array in arrays.items():
        name, _, weight = path.partition("/")
        found.setdefault(name, {})[weight] = array
    return found


def flattened(state: State) -> dict[str, Any]:
    """Return a client's state as arrays by ``name/weight``."""
    return {
        f"{name}/{weight}": array for name, kept in state.items() for weight, array in kept.items()
    }


def local_update(
    weights: Weights, sent: Sent, state: State, num_examples: int, metrics: dict[str, float]
) -> LocalUpdate:
    """Return what a device sends, as flat vectors of the weights' layout; all are numpy arrays."""
    vectors: dict[str, Vector] = {
        name: flat_update(weights, arrays) for name, arrays in sent.vectors.items()
    }
    return LocalUpdate(
        vectors.pop(UPDATE, None),
        num_examples,
        metrics,
        flattened(state),
        vectors,
        {name: float(value) for name, value in sent.scalars.items()},
    )
