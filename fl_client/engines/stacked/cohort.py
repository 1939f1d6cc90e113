"""Trains all clients of a cohort at once, as the numpy engine trains each by itself.

Weights, gradients and batches of several clients are stacked, and each operation is one call for
all of them. The results differ from the engine's by rounding alone. An algorithm's ``start`` and
``finish`` run client by client, on views of the stack; its ``direction`` runs once for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from algorithms.base import Algorithm, Received
from fl_client.engines._client_half import received_vectors
from fl_client.engines._examples import class_weights_of
from fl_client.engines._numpy_training import NumpyData, NumpyTraining
from fl_client.engines.numpy import NumpyEngine
from fl_client.engines.stacked.client import (
    NOT_FINITE,
    Array,
    CohortMember,
    Outcome,
    Pair,
    StackedClient,
    is_fedavg,
)
from fl_client.engines.stacked.direction import StackedDirection
from fl_client.engines.stacked.examples import StackedExamples
from fl_client.engines.stacked.layers import unsupported
from fl_client.engines.stacked.model import StackedModel
from fl_client.engines.stacked.per_client import CannotBatch
from fl_client.engines.stacked.schedule import groups, schedule_of
from fl_client.engines.stacked.training import Group, GroupTraining
from fl_client.models import layers, memory
from fl_client.models.dropout import DropoutMasks
from fl_client.tasks.attributes import require_trainable
from fl_client.tasks.base import Task
from fl_client.tasks.user_code import model_of
from storage.weights import Weights

if TYPE_CHECKING:
    from fl_client.tasks.split import Split

_LARGE = 50_000
"""A model of so many weights is trained by several threads: numpy computes for long enough without
Python's lock then."""

_WEIGHT_S = 2e-10
"""What a weight costs for each example of a step, in seconds: about six operations."""


class CohortEngine:
    """Trains cohorts of one declarative task. Calls do not depend on earlier calls.

    Args:
        threads: how many train a large model; numpy should have none of its own beside them.

    Raises:
        CannotBatch: the task needs one client at a time; the text says for what.
        ConfigError: the task needs torch.
    """

    def __init__(self, task: Task, *, threads: int = 1) -> None:
        if type(task).local_update is not Task.local_update:
            raise CannotBatch(f"local_update() of task {task.name}")
        self._task = task
        self._engine = NumpyEngine(task)
        self._layers = cast("layers.Layers", model_of(task))
        found = unsupported(self._layers)
        if found is not None:
            raise CannotBatch(f"{found} of the model of task {task.name}")
        self._model = StackedModel(self._layers, task.objective)
        self._has_dropout = any(isinstance(layer, layers.Dropout) for layer in self._layers)
        self._threads = threads if self._model.size >= _LARGE else 1

    def examples(self, data: Split) -> Pair:
        """Return a client's training data as arrays that every round can use; they are no copies.

        Raises:
            ConfigError: the data are no pair of arrays that fit the task's model.
            CannotBatch: an example's target is more than one class.
        """
        inputs, targets = self._engine.arrays(data)
        if self._task.objective == "cross_entropy" and targets.ndim > 1:
            raise CannotBatch("targets of more than one class number for each example")
        return inputs, targets

    def train(self, weights: Weights, members: Sequence[CohortMember]) -> list[Outcome]:
        """Return each client's update, or why it has none, in the order of ``members``.

        Args:
            members: clients of one round of one run.

        Raises:
            CannotBatch: the algorithm treats clients apart; the text says by what.
        """
        if "loss" in members[0].plan.algorithm.needs:
            raise CannotBatch("a change of the loss")
        if any(each.plan.width != 1 for each in members):
            raise CannotBatch("a part of the model that is each client's own")
        found: list[Outcome | None] = [None] * len(members)
        parts = self._groups(self._clients(weights, members))
        if self._threads == 1 or len(parts) == 1:
            trained = [self._trained(weights, part) for part in parts]
        else:
            with ThreadPoolExecutor(self._threads) as pool:
                trained = list(pool.map(lambda part: self._trained(weights, part), parts))
        for part, outcomes in zip(parts, trained, strict=True):
            for client, outcome in zip(part, outcomes, strict=True):
                found[client.number] = outcome
        return cast("list[Outcome]", found)

    @property
    def size(self) -> int:
        """The number of the model's weights."""
        return self._model.size

    # --- who trains with whom -----------------------------------------------------------------

    def _clients(self, weights: Weights, members: Sequence[CohortMember]) -> list[StackedClient]:
        """Return the clients with the weights that they start from."""
        plan = members[0].plan
        if is_fedavg(plan.algorithm) and not any(each.plan.state for each in members):
            return [StackedClient(number, each, None) for number, each in enumerate(members)]
        named = self._engine.named(weights)
        got = Received(named, received_vectors(weights, plan), plan.scalars)
        found = []
        for number, each in enumerate(members):
            data = NumpyData(*each.examples, self._class_weights(each))
            training = NumpyTraining(self._engine, got, each.plan, data)
            training.begin()
            found.append(StackedClient(number, each, training))
        return found

    def _class_weights(self, member: CohortMember) -> Array | None:
        settings = member.plan.settings
        require_trainable(self._task, settings)
        if not settings.class_weights:
            return None
        costs = memory.layer_costs(self._layers, member.examples[0].shape[1:])
        return class_weights_of(self._task, settings, costs[-1].output[0])

    def _groups(self, clients: Sequence[StackedClient]) -> list[list[StackedClient]]:
        """Return the clients that train together: alike in settings and state, and in size."""
        alike: dict[Any, list[StackedClient]] = {}
        for each in clients:
            alike.setdefault(each.kind(), []).append(each)
        parts: list[list[StackedClient]] = []
        for same in alike.values():
            counts, totals = [each.count for each in same], [each.steps for each in same]
            size = same[0].member.plan.settings.batch_size
            for numbers in groups(counts, totals, size, self._model.size * _WEIGHT_S):
                group = [same[number] for number in numbers]
                # for each thread about as many steps
                shares = [group[first :: self._threads] for first in range(self._threads)]
                parts.extend(share for share in shares if share)
        return parts

    # --- one group ----------------------------------------------------------------------------

    def _trained(self, weights: Weights, clients: list[StackedClient]) -> list[Outcome]:
        # a client that diverges is told by its loss; numpy's error state is each thread's own
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            rows = np.empty((len(clients), weights.layout.size), np.float32)
            rows[:] = weights.vector
            for client, row in zip(clients, rows, strict=True):
                client.start(weights.layout, row)
            group = self._group(weights, clients)
            losses = GroupTraining(group, rows, _direction(clients)).run()
            if clients[0].training is None:
                rows -= weights.vector
            means = np.einsum("sc,sc->c", losses, group.schedule.last_epoch).tolist()
            are_finite = zip(_are_finite(losses.T), _are_finite(rows), strict=True)
        found: list[Outcome] = []
        for number, (loss_is, row_is) in enumerate(are_finite):
            client = clients[number]
            if not loss_is:
                found.append(client.diverged(losses[:, number]))
            elif not row_is:
                found.append(NOT_FINITE)
            else:
                found.append(client.finish(weights, rows[number], means[number]))
        return found

    def _group(self, weights: Weights, clients: list[StackedClient]) -> Group:
        plans = [each.member.plan for each in clients]
        seeds = [plan.local_seed for plan in plans]
        counts, totals = tuple(each.count for each in clients), tuple(e.steps for e in clients)
        return Group(
            self._model,
            weights.layout,
            schedule_of(counts, totals, plans[0].settings.batch_size),
            StackedExamples([each.member.examples for each in clients], seeds),
            plans[0].settings,
            self._class_weights(clients[0].member),
            [DropoutMasks(seed) for seed in seeds] if self._has_dropout else None,
            frozenset() if clients[0].training is None else clients[0].training.frozen,
        )


def _direction(clients: Sequence[StackedClient]) -> StackedDirection | None:
    """Return the algorithm's direction, None where it is the gradient."""
    algorithm = clients[0].member.plan.algorithm
    halves = [each.training.half for each in clients if each.training is not None]
    if type(algorithm).direction is Algorithm.direction or not halves:
        return None
    return StackedDirection(algorithm, halves)


def _are_finite(rows: Array) -> list[bool]:
    """Return of each row whether all its values are finite."""
    found = np.isfinite(np.add.reduce(rows, 1))
    if not found.all():
        # a sum of finite values can be infinite in float32
        found = np.isfinite(np.add.reduce(rows, 1, dtype=np.float64))
    are_finite: list[bool] = found.tolist()
    return are_finite
