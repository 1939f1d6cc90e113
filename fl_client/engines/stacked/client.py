"""What of a client's round is its own, where its steps are taken together with others'."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from algorithms.base import Algorithm
from fl_client.engines._client_half import local_update, shaped
from fl_client.engines._numpy_training import NumpyTraining
from fl_client.engines.base import TrainingFailed, steps_of
from fl_client.models.local_round import LocalRound, LocalUpdate
from storage.weights import Layout, Vector, Weights

Array: TypeAlias = NDArray[Any]
Pair: TypeAlias = tuple[Array, Array]
Outcome: TypeAlias = LocalUpdate | TrainingFailed

NOT_FINITE = TrainingFailed("training diverged: the update is not finite")


@dataclass(frozen=True)
class CohortMember:
    """A client of a cohort: its examples, as ``CohortEngine.examples`` gave them."""

    examples: Pair
    plan: LocalRound


class StackedClient:
    """A member of a cohort, and how its training begins and ends.

    Attributes:
        number: its place in the cohort.
        training: its hooks; None where they are FedAvg's and it keeps nothing.
        count: the number of its examples.
        steps: the number of its steps.
    """

    __slots__ = ("count", "member", "number", "steps", "training")

    def __init__(self, number: int, member: CohortMember, training: NumpyTraining | None) -> None:
        self.number, self.member, self.training = number, member, training
        self.count = len(member.examples[0])
        self.steps = steps_of(member.plan.settings, self.count)

    def kind(self) -> tuple[Any, ...]:
        """Return what clients that train together have in common."""
        settings = self.member.plan.settings
        state: tuple[Any, ...] = ()
        if self.training is not None:
            state = tuple(
                (name, each, np.shape(array))
                for name, kept in self.training.half.state.items()
                for each, array in kept.items()
            )
        return (
            *(settings.batch_size, settings.learning_rate, settings.momentum, settings.optimizer),
            *(settings.weight_decay, settings.clip_norm, settings.class_weights),
            state,
        )

    def start(self, layout: Layout, row: Vector) -> None:
        """Set the weights that training starts from, where they are not the global ones."""
        if self.training is not None:
            w = shaped(row, layout)
            for name, array in self.training.w.items():
                w[name][...] = array

    def finish(self, weights: Weights, row: Vector, mean: float) -> Outcome:
        """Return what the client sends and keeps.

        Args:
            weights: the global ones.
            row: the client's own; their change where its hooks are FedAvg's.
            mean: of the losses of its last whole epoch.
        """
        plan, metrics = self.member.plan, {"train_loss": mean}
        plan.tally.steps = plan.tally.full_steps = self.steps
        if plan.settings.max_steps:
            plan.tally.full_steps = plan.settings.local_epochs * self._per_epoch
        if self.training is None:
            return LocalUpdate(row, self.count, metrics, plan.state)
        self.training.w = shaped(row, weights.layout)
        update = local_update(weights, *self.training.finish(), self.count, metrics)
        sums = [vector.sum(dtype=np.float64) for vector in vectors_of(update)]
        if not np.isfinite([*sums, *map(np.float32, update.scalars.values())]).all():
            return NOT_FINITE
        return update

    def diverged(self, losses: Array) -> TrainingFailed:
        """Return why it has no update; one of its steps' losses is no finite number."""
        step, settings = int(np.flatnonzero(~np.isfinite(losses))[0]), self.member.plan.settings
        return TrainingFailed(
            f"training diverged: the loss is {losses[step]} in local epoch "
            f"{step // self._per_epoch + 1} of {settings.local_epochs} "
            f"(learning_rate {settings.learning_rate})"
        )

    @property
    def _per_epoch(self) -> int:
        return -(-self.count // self.member.plan.settings.batch_size)


def is_fedavg(algorithm: Algorithm) -> bool:
    """Return whether an algorithm's client half is FedAvg's."""
    kind = type(algorithm)
    return (
        kind.start is Algorithm.start
        and kind.direction is Algorithm.direction
        and kind.finish is Algorithm.finish
        and kind.is_private is Algorithm.is_private
        and kind.is_frozen is Algorithm.is_frozen
    )


def vectors_of(update: LocalUpdate) -> list[Vector]:
    """Return the vectors that a client sends."""
    return [*update.vectors.values(), *([] if update.vector is None else [update.vector])]
