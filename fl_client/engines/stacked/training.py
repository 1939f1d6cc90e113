"""The steps of a group of clients that train at once.

The clients' weights are the rows of one array, in the layout of the model's vector, so that a step
of gradient descent is one subtraction for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fl_client.engines._descent import Descent, clip_factor
from fl_client.engines.stacked.direction import StackedBatch, StackedDirection
from fl_client.engines.stacked.examples import StackedExamples
from fl_client.engines.stacked.model import StackedModel
from fl_client.engines.stacked.schedule import Schedule, StackedStep
from fl_client.models.dropout import DropoutMasks
from fl_client.models.settings import TrainingSettings
from storage.weights import Layout

Array: TypeAlias = NDArray[Any]


@dataclass(frozen=True)
class Group:
    """Clients that train at once, in the order of their schedule.

    Attributes:
        settings: what they share; epochs and steps are in the schedule.
        class_weights: how much each class counts, None where all count alike.
        masks: each client's dropout, None where the model has none.
        frozen: the weights that the algorithm does not train.
    """

    model: StackedModel
    layout: Layout
    schedule: Schedule
    examples: StackedExamples
    settings: TrainingSettings
    class_weights: Array | None = None
    masks: Sequence[DropoutMasks] | None = None
    frozen: frozenset[str] = frozenset()

    @property
    def is_plain(self) -> bool:
        """Whether a step is one along the gradient, with nothing beside it."""
        settings = self.settings
        return settings.optimizer == "sgd" and not (
            settings.momentum or settings.weight_decay or settings.clip_norm or self.frozen
        )


class GroupTraining:
    """One round's training of a group.

    Args:
        rows: the weights that each client starts from, [clients, weights]; they are trained.
        direction: the algorithm's; None where it is the gradient.
    """

    def __init__(self, group: Group, rows: Array, direction: StackedDirection | None) -> None:
        self._group, self._rows, self._direction = group, rows, direction
        self._descent = Descent(group.settings)
        self._changes = np.empty_like(rows)
        self._is_plain = direction is None and group.is_plain
        self._rate = np.float32(group.settings.learning_rate)
        self._active, self._number = 0, 0
        self.w: dict[str, Array] = {}
        self._grads: dict[str, Array] = {}

    def run(self) -> Array:
        """Take all steps and return the mean loss of each, [steps, clients], 0 where none was."""
        steps = self._group.schedule.steps
        losses = np.zeros((len(steps), len(self._rows)), np.float32)
        for number, step in enumerate(steps):
            if step.active != self._active:
                self._keep_first(step.active)
            losses[number, : step.active] = self._step(number, step)
        if self._direction is not None:
            self._direction.keep_first(0)
        return losses

    def _keep_first(self, count: int) -> None:
        self._active = count
        self.w = shaped_rows(self._rows[:count], self._group.layout)
        self._grads = shaped_rows(self._changes[:count], self._group.layout)
        if self._direction is not None:
            self._direction.keep_first(count)
        for named in self._descent.state.values():
            named.update({name: array[:count] for name, array in named.items()})

    def _step(self, number: int, step: StackedStep) -> Array:
        inputs, targets = self._group.examples.batch(step)
        self._number = number
        if self._is_plain:
            share = self._weighted(step.share, targets)
            losses = self._model_gradient(self.w, (inputs, targets, share), self._grads, self._rate)
            changed = self._rows[: step.active]
            changed -= self._changes[: step.active]
            return losses
        if self._direction is None:
            losses, g = self._gradient(self.w, inputs, targets, step.share)
        else:
            batch = StackedBatch(self._gradient, self.w, number, inputs, targets, step.sizes)
            g = self._direction(batch)
            losses = batch.losses[0]
        self._descent.step(self.w, g)
        return losses

    def _gradient(
        self, w: Mapping[str, Array], inputs: Array, targets: Array, share: Any
    ) -> tuple[Array, dict[str, Array]]:
        """Return each client's loss and its clipped gradients, which are new arrays."""
        grads: dict[str, Array] = {}
        batch = (inputs, targets, self._weighted(share, targets))
        losses = self._model_gradient(w, batch, grads, None)
        trained = [name for name in self._group.model.trained if name not in self._group.frozen]
        grads = {name: grads[name] for name in trained}
        if self._group.settings.clip_norm:
            _clip(grads, self._group.settings.clip_norm)
        return losses, grads

    def _model_gradient(
        self,
        w: Mapping[str, Array],
        batch: tuple[Array, Array, Any],
        grads: dict[str, Array],
        scale: np.float32 | None,
    ) -> Array:
        masks = self._group.masks
        active = None if masks is None else masks[: self._active]
        for each in active or ():
            each.begin(self._number)
        return self._group.model.gradient(w, batch, active, grads, scale)

    def _weighted(self, share: Any, targets: Array) -> Any:
        weights = self._group.class_weights
        return share if weights is None else share * weights[targets]


def shaped_rows(rows: Array, layout: Layout) -> dict[str, Array]:
    """Return rows of weights as named arrays [clients, ...], which share their memory."""
    return {
        spec.name: rows[:, layout.offsets[spec.name]].reshape(len(rows), *spec.shape)
        for spec in layout.floats
    }


def _clip(grads: Mapping[str, Array], clip_norm: float) -> None:
    """Scale each client's gradient to its largest norm, in place."""
    squares = [np.einsum("ci,ci->c", *[g.reshape(len(g), -1)] * 2) for g in grads.values()]
    norms = np.sqrt(np.array(squares, np.float64))
    factors = np.array([clip_factor(each, clip_norm) for each in norms.T.tolist()], np.float32)
    if (factors < 1).any():
        for grad in grads.values():
            np.multiply(grad, factors.reshape(-1, *(1 for _ in grad.shape[1:])), out=grad)
