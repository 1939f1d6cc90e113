"""What of a client's round is its own, where its steps are taken together with others'."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
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


@dataclass(frozen=True)
class Member:
    """A client of a cohort: its examples, as ``CohortEngine.examples`` gave them."""

    examples: Pair
    plan: LocalRound


@dataclass(frozen=True)
class Client:
    """A member of a cohort, and how its training begins and ends.

    Attributes:
        number: its place in the cohort.
        training: its hooks; None where they are FedAvg's and it keeps nothing.
    """

    number: int
    member: Member
    training: NumpyTraining | None

    @cached_property
    def count(self) -> int:
        """The number of its examples."""
        return len(self.member.examples[0])

    @cached_property
    def steps(self) -> int:
        """The number of its steps."""
        return steps_of(self.member.plan.settings, self.count)

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

    def finish(self, weights: Weights, row: Vector, losses: Array, mean: float) -> Outcome:
        """Return what the client sends and keeps.

        Args:
            weights: the global ones.
            row: the client's own; the update may take their place.
            losses: of its steps.
            mean: of the losses of its last whole epoch.
        """
        self.member.plan.tally.steps += self.steps
        if not np.isfinite(losses).all():
            return self._diverged(losses)
        if self.training is None:
            row -= weights.vector
            update = LocalUpdate(row, self.count, {"train_loss": mean}, self.member.plan.state)
        else:
            self.training.w = shaped(row, weights.layout)
            metrics = {"train_loss": mean}
            update = local_update(weights, *self.training.finish(), self.count, metrics)
            # what is kept must not hold all clients' weights in memory
            state = {name: np.array(array) for name, array in update.state.items()}
            update = update._replace(state=state)
        if not _is_finite(update):
            return TrainingFailed("training diverged: the update is not finite")
        return update

    def _diverged(self, losses: Array) -> TrainingFailed:
        step = int(np.flatnonzero(~np.isfinite(losses))[0])
        settings = self.member.plan.settings
        epoch = step // -(-self.count // settings.batch_size) + 1
        return TrainingFailed(
            f"training diverged: the loss is {losses[step]} in local epoch {epoch} of "
            f"{settings.local_epochs} (learning_rate {settings.learning_rate})"
        )


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


def _is_finite(update: LocalUpdate) -> bool:
    vectors = [*update.vectors.values(), *([] if update.vector is None else [update.vector])]
    sums = [vector.sum(dtype=np.float64) for vector in vectors]
    return bool(np.isfinite([*sums, *map(np.float32, update.scalars.values())]).all())
