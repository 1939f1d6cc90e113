"""The examples of a group of clients, in the order in which each client trains on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fl_client.engines.stacked.schedule import StackedStep

Array: TypeAlias = NDArray[Any]


class StackedExamples:
    """One epoch's examples of each client, shuffled as an engine shuffles them.

    Only these are copied: once an epoch, whatever the number of steps.

    Args:
        clients: each one's inputs and targets.
        seeds: of each client's order.
    """

    def __init__(self, clients: Sequence[tuple[Array, Array]], seeds: Sequence[int]) -> None:
        self._clients = clients
        self._random = [np.random.default_rng(seed) for seed in seeds]
        (inputs, targets), most = clients[0], max(len(each) for each, _ in clients)
        # zeros: what fills up a batch must be finite, though it counts nothing
        self._inputs = np.zeros((len(clients), most, *inputs.shape[1:]), np.float32)
        self._targets = np.zeros((len(clients), most, *targets.shape[1:]), targets.dtype)

    def batch(self, step: StackedStep) -> tuple[Array, Array]:
        """Return the inputs and targets of a step, [active, width, ...]."""
        for number in step.begins:
            self._begin_epoch(number)
        if step.start is not None:
            where = slice(step.start, step.start + step.width)
            return self._inputs[: step.active, where], self._targets[: step.active, where]
        rows = step.starts[:, np.newaxis] + np.minimum(
            np.arange(step.width), step.sizes[:, np.newaxis] - 1
        )
        clients = np.arange(step.active)[:, np.newaxis]
        return self._inputs[clients, rows], self._targets[clients, rows]

    def _begin_epoch(self, number: int) -> None:
        inputs, targets = self._clients[number]
        count = len(inputs)
        order = self._random[number].permutation(count)
        if inputs.dtype == np.float32:
            # "clip": with the default every value is copied twice
            inputs.take(order, 0, self._inputs[number, :count], "clip")
        else:
            self._inputs[number, :count] = inputs[order]
        targets.take(order, 0, self._targets[number, :count], "clip")
