"""One round's training on the numpy engine: its steps and its state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from algorithms.base import Arrays, Received, Sent, State
from fl_client.engines._client_half import ClientHalf, LocalTraining, nested
from fl_client.engines._descent import Descent, clip_factor
from fl_client.engines._numpy_call import OF_ALL, Array, GradientOf
from fl_client.engines.base import Indices, pieces
from fl_client.models.dropout import DropoutMasks
from fl_client.models.local_round import LocalRound
from fl_client.models.parts import ModelParts
from runtime.errors import ConfigError


class NumpyModel(Protocol):
    """A model's derivatives, which the engine computes."""

    trained: list[str]

    @property
    def parts(self) -> ModelParts:
        """The head and the normalisation of the model."""
        ...

    def copied_statistics(self, w: dict[str, Array]) -> dict[str, Array]:
        """Return the weights with running statistics of their own."""
        ...

    def mean_loss(self, w: dict[str, Array], inputs: Array, targets: Array) -> float:
        """Return the mean loss as an evaluation computes it."""
        ...

    def batch_gradients(
        self,
        w: dict[str, Array],
        masks: DropoutMasks,
        batch: tuple[Array, Array],
        of: GradientOf = OF_ALL,
    ) -> tuple[float, dict[str, Array]]:
        """Return the mean loss of a batch and its gradient; changes running statistics in ``w``."""
        ...


@dataclass(frozen=True)
class NumpyData:
    """What a round trains on."""

    inputs: Array
    targets: Array
    class_weights: Array | None


class NumpyTraining:
    """One round's training: the weights, the algorithm's client half, and the optimiser."""

    def __init__(self, model: NumpyModel, got: Received, plan: LocalRound, data: NumpyData) -> None:
        self._model, self._plan, self._data = model, plan, data
        local = LocalTraining(
            plan, len(data.inputs), model.parts, self._loss_of_all, self._gradient_of_all
        )
        self.half = ClientHalf(plan, got, nested(plan.state), local)
        self.frozen = self.half.frozen(model.trained)
        if len(self.frozen) == len(model.trained):
            raise ConfigError(f"the algorithm trains none of {', '.join(model.trained)[:200]}")
        self.w: dict[str, Array] = dict(got.weights)
        self.clip_norm = plan.settings.clip_norm
        self._descent = Descent(plan.settings)
        self._masks = DropoutMasks(plan.local_seed)

    def begin(self) -> None:
        """Take the weights that training starts from."""
        start = self.half.start()
        self.w = {name: np.array(start[name], array.dtype) for name, array in self.w.items()}

    def step(self, chosen: Indices) -> float:
        """Train on one batch and return its loss."""
        batch = NumpyBatch(self, chosen, self._descent.steps, [])
        direction = self.half.direction(batch, self.w)
        self._descent.step(self.w, direction)
        return batch.losses[0]

    def gradient(self, w: Arrays, chosen: Indices) -> tuple[float, dict[str, Array]]:
        """Return the loss and the gradient of a batch; at the own weights statistics go on."""
        at = self.w if w is self.w else self._elsewhere(w)
        self._masks.begin(self._descent.steps)
        data, total, found = self._data, 0.0, dict[str, Array]()
        of = GradientOf(data.class_weights, self.frozen)
        for piece, share in pieces(chosen, self._plan.settings):
            batch = (data.inputs[piece], data.targets[piece])
            loss, grads = self._model.batch_gradients(at, self._masks, batch, of)
            total += loss * share
            _add(found, grads, share)
        return total, found

    def _elsewhere(self, w: Arrays) -> dict[str, Array]:
        return self._model.copied_statistics({**self.w, **w})

    def _loss_of_all(self, w: Arrays) -> float:
        return self._model.mean_loss({**self.w, **w}, self._data.inputs, self._data.targets)

    def _gradient_of_all(self, w: Arrays) -> dict[str, Array]:
        count, size = len(self._data.inputs), self._plan.settings.batch_size
        found = dict[str, Array]()
        for start in range(0, count, size):
            chosen = np.arange(start, min(start + size, count))
            _, grads = self.gradient(dict(w), chosen)
            _add(found, grads, len(chosen) / count)
        return found

    def finish(self) -> tuple[Sent, State]:
        """Return what is sent and kept; the optimiser's state is freed first."""
        self._descent = Descent(self._plan.settings)
        return self.half.finish(self.w, self._model.trained)

    def capture(self) -> dict[str, Array]:
        """Return the weights and the optimiser's state."""
        found = {f"w/{name}": array for name, array in self.w.items()}
        found.update((f"optimizer/{name}", array) for name, array in self._descent.arrays())
        found.update(self.half.capture())
        return {**found, "steps": np.array([self._descent.steps], np.int64)}

    def restore(self, arrays: Mapping[str, Array]) -> bool:
        """Set a captured state; False when it is not of these weights."""
        saved = {name[2:]: array for name, array in arrays.items() if name.startswith("w/")}
        if "steps" not in arrays or not _same_shapes(saved, self.w):
            return False
        self.w = {name: np.array(saved[name]) for name in self.w}
        self._descent.steps = int(arrays["steps"][0])
        for name, array in arrays.items():
            if name.startswith("optimizer/"):
                self._descent.restore(name.removeprefix("optimizer/"), np.array(array))
        self.half.restore(arrays, np.array)
        return True


@dataclass(frozen=True)
class NumpyBatch:
    """The examples of a step; ``losses`` are of the gradients that were asked for, in order."""

    training: NumpyTraining
    chosen: Indices
    number: int
    losses: list[float]

    def gradient(self, w: Arrays) -> dict[str, Array]:
        loss, grads = self.training.gradient(w, self.chosen)
        self.losses.append(loss)
        norms = (float(np.linalg.norm(grad)) for grad in grads.values())
        factor = clip_factor(norms, self.training.clip_norm)
        if factor < 1:
            for grad in grads.values():
                grad *= factor  # noqa: PLW2901  in place
        return grads

    def halves(self) -> tuple[NumpyBatch, NumpyBatch]:
        middle = (len(self.chosen) + 1) // 2
        second = self.chosen[middle:] if len(self.chosen) > 1 else self.chosen
        return replace(self, chosen=self.chosen[:middle]), replace(self, chosen=second)


def _add(total: dict[str, Array], grads: dict[str, Array], share: float) -> None:
    """Add the gradient of a part of a batch, which is overwritten, to that of the batch."""
    if share == 1.0:
        total.update(grads)
        return
    for name, grad in grads.items():
        grad *= share  # noqa: PLW2901  in place
        if name in total:
            total[name] += grad
        else:
            total[name] = grad


def _same_shapes(one: Mapping[str, Array], other: Mapping[str, Array]) -> bool:
    return {name: (a.shape, a.dtype) for name, a in one.items()} == {
        name: (a.shape, a.dtype) for name, a in other.items()
    }
