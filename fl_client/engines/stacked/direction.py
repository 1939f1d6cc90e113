"""An algorithm's ``direction`` for several clients at once.

The algorithm's own code runs, on arrays of all clients. What it asks of its batch and of its
training is answered here as an engine answers it for one client.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from algorithms.base import Algorithm, Arrays, State
from fl_client.engines._client_half import ClientHalf, LocalTraining
from fl_client.engines.stacked.per_client import CannotBatch, PerClient, of_client, stacked
from fl_client.engines.stacked.schedule import Sizes, shares_of

Array: TypeAlias = NDArray[Any]
Gradient: TypeAlias = Callable[[Mapping[str, Array], Array, Array, Any], tuple[Array, Any]]
"""Returns each client's loss and gradients at weights, for inputs, targets and their shares."""


@dataclass(frozen=True)
class StackedBatch:
    """The examples of a step; ``losses`` are of the gradients that were asked for, in order."""

    compute: Gradient
    w: Mapping[str, Array]
    number: int
    inputs: Array
    targets: Array
    sizes: Sizes
    losses: list[Array] = field(default_factory=list)

    def gradient(self, w: Arrays) -> dict[str, Any]:
        """Return each client's gradient of the mean loss at ``w``."""
        at = {**self.w, **{name: _plain(value) for name, value in w.items()}}
        share = shares_of(self.sizes, self.inputs.shape[1])
        losses, grads = self.compute(at, self.inputs, self.targets, share)
        self.losses.append(losses)
        return {name: PerClient(grad) for name, grad in grads.items()}

    def halves(self) -> tuple[StackedBatch, StackedBatch]:
        """Return two batches of half of each client's examples; of one example, the same twice."""
        middle = (self.sizes + 1) // 2
        first = np.zeros_like(middle)
        rest = np.where(self.sizes > 1, self.sizes - middle, self.sizes)
        return self._part(first, middle), self._part(self.sizes - rest, rest)

    def _part(self, first: Sizes, sizes: Sizes) -> StackedBatch:
        clients = np.arange(len(sizes))[:, np.newaxis]
        inside = np.minimum(np.arange(int(sizes.max())), sizes[:, np.newaxis] - 1)
        rows = first[:, np.newaxis] + inside
        inputs, targets = self.inputs[clients, rows], self.targets[clients, rows]
        return replace(self, inputs=inputs, targets=targets, sizes=sizes)


class StackedLocal:
    """What an algorithm knows of the trainings; a number where all clients have the same one."""

    def __init__(self, locals_: Sequence[LocalTraining]) -> None:
        first = locals_[0]
        self.round, self.learning_rate = first.round, first.learning_rate
        self.head, self.norms, self.adapters = first.head, first.norms, first.adapters
        self.num_examples: Any = _shared([each.num_examples for each in locals_])
        self.steps: Any = _shared([each.steps for each in locals_])
        self.width: Any = _shared([each.width for each in locals_])

    @property
    def seed(self) -> int:
        """Refuse: what is drawn differs from client to client."""
        raise CannotBatch("what each client draws by itself, within a step")

    def loss(self, w: Arrays) -> float:
        """Refuse: it would be of a whole data set at every step."""
        raise CannotBatch("the loss on all of a client's data, within a step")

    def gradient(self, w: Arrays) -> dict[str, Any]:
        """Refuse: it would be of a whole data set at every step."""
        raise CannotBatch("the gradient on all of a client's data, within a step")


class StackedDirection:
    """The client halves of a group's clients while they take steps together."""

    def __init__(self, algorithm: Algorithm, halves: Sequence[ClientHalf]) -> None:
        self._algorithm, self._halves = algorithm, list(halves)
        self._got = halves[0].got
        self._state: State = stacked([each.state for each in halves])
        self._local = StackedLocal([each.local for each in halves])

    def keep_first(self, count: int) -> None:
        """Go on with the first clients; the others' states are those that they end with."""
        for number in range(count, len(self._halves)):
            self._halves[number].state = of_client(self._state, number)
        del self._halves[count:]
        if count:
            self._state = {
                name: {each: _first(value, count) for each, value in kept.items()}
                for name, kept in self._state.items()
            }
            self._local = StackedLocal([each.local for each in self._halves])

    def __call__(self, batch: StackedBatch) -> dict[str, Array]:
        """Return what each client's optimiser steps along."""
        w = {name: PerClient(array) for name, array in batch.w.items()}
        g, self._state = self._algorithm.direction(batch, w, self._got, self._state, self._local)
        clients = len(self._halves)
        return {name: _of_all(value, clients) for name, value in g.items()}


def _plain(value: Any) -> Array:
    return value.stack if isinstance(value, PerClient) else np.asarray(value)


def _of_all(value: Any, clients: int) -> Array:
    if isinstance(value, PerClient):
        return value.stack
    return np.broadcast_to(value, (clients, *np.shape(value)))


def _first(value: Any, count: int) -> Any:
    return PerClient(value.stack[:count]) if isinstance(value, PerClient) else value


def _shared(values: Sequence[float]) -> Any:
    if len(set(values)) == 1:
        return values[0]
    return PerClient(np.array(values, np.float32))
