"""The torch-free engine: declarative models, trained by numpy alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from fl_client.engines._descent import Descent, clip_factor
from fl_client.engines._examples import as_pair, class_weights_of, fitted, require_inputs
from fl_client.engines._numpy_call import Array, LayerCall
from fl_client.engines._numpy_layers import forward
from fl_client.engines.base import (
    Dtype,
    Indices,
    Means,
    TrainingFailed,
    Tuning,
    check_same_names,
    flat_update,
    pieces,
    run_epochs,
)
from fl_client.models import layers, memory
from fl_client.models.dropout import DropoutMasks
from fl_client.models.local_round import Evaluation, LocalRound, LocalUpdate
from fl_client.models.settings import Objective
from fl_client.tasks.attributes import require_trainable
from fl_client.tasks.base import Task
from fl_client.tasks.user_code import model_of, numbers_of
from runtime.errors import ConfigError
from runtime.processes.rss import rss_bytes
from storage.weights import Weights

if TYPE_CHECKING:
    from fl_client.tasks.split import Split

_TORCH_ONLY = ("loss", "predict", "training_step", "optimizer")


def engine(
    task: Task, *, profile: str = "cpu", dtype: Dtype = "float32", tuning: Tuning | None = None
) -> NumpyEngine:
    """Return the numpy engine for ``task``; it uses neither profile nor tuning."""
    del profile, tuning
    return NumpyEngine(task, dtype=dtype)


class NumpyEngine:
    """Trains and evaluates a declarative task.

    Raises:
        ConfigError: the task needs torch; the text says which part of it.
    """

    name = "numpy"

    def __init__(self, task: Task, *, dtype: Dtype = "float32") -> None:
        for method in _TORCH_ONLY:
            if getattr(type(task), method) is not getattr(Task, method):
                raise ConfigError(
                    f"task {task.name} overrides {method}(), which only the torch engine can run"
                )
        model = model_of(task)
        if not layers.is_declarative(model):
            raise ConfigError(
                f"task {task.name} has a model of type {type(model).__name__}, which only the "
                "torch engine can run; the numpy engine needs a list of layers"
            )
        self._task = task
        self._layers = cast("layers.Layers", model)
        self._dtype = np.dtype(dtype)
        self._tensors = layers.tensors(self._layers)
        self._trained = [n for n, tensor in self._tensors.items() if tensor.role == "weight"]
        if not self._trained:
            raise ConfigError(f"the model of task {task.name} has nothing to train")
        self._first = int(self._trained[0].partition(".")[0])

    def own_process(self) -> None:
        """Do nothing: numpy's threads are limited by the process's environment."""

    def train(self, weights: Weights, data: Split, plan: LocalRound) -> LocalUpdate:
        """Return the update of one round of local training."""
        if plan.algorithm.needs_loss:
            raise ConfigError(
                f"algorithm {type(plan.algorithm).__name__} changes the loss, which only the "
                "torch engine can do"
            )
        require_trainable(self._task, plan.settings)
        inputs, targets = self._arrays(data)
        outputs = memory.layer_costs(self._layers, inputs.shape[1:])[-1].output
        class_weights = class_weights_of(self._task, plan.settings, outputs[0])
        plan = self._within_memory(plan, inputs.shape[1:])
        training = _Training(self._named(weights), plan)

        def step(chosen: Indices) -> float:
            total = 0.0
            for piece, share in pieces(chosen, plan.settings):
                loss, grads = self._gradients(
                    training.w, training.masks, (inputs[piece], targets[piece]), class_weights
                )
                training.add(grads, share)
                total += loss * share
            training.descend()
            return total

        metrics = run_epochs(plan, len(inputs), step, training)
        update, state = training.finish()
        kept = {name: np.asarray(array) for name, array in state.items()}
        return LocalUpdate(flat_update(weights, update), len(inputs), metrics, kept)

    def evaluate(self, weights: Weights, data: Split) -> Evaluation:
        """Return the mean loss and metrics on ``data``."""
        inputs, targets = self._arrays(data)
        w, means = self._named(weights), Means()
        size = memory.evaluation_batch(self._layers, inputs.shape[1:], self._dtype.itemsize)
        for start in range(0, len(inputs), size):
            chosen = slice(start, start + size)
            outputs = inputs[chosen].astype(self._dtype, copy=False)
            for index, layer in enumerate(self._layers):
                outputs, _ = forward(layer, LayerCall(index, w, {}), outputs)
            loss, _ = _loss(self._task.objective, outputs, targets[chosen])
            given = self._task.metrics(outputs, targets[chosen])
            metrics = numbers_of(self._task, "metrics", given)
            means.add(len(outputs), {"loss": loss, **metrics})
        return means.evaluation()

    def gradients(self, weights: Weights, data: Split) -> tuple[float, dict[str, Array]]:
        """Return the mean loss on all of ``data`` as one batch, and its gradient by name."""
        w = self._named(weights)
        # a training pass changes the running statistics, which belong to the caller
        w.update((n, w[n].copy()) for n, t in self._tensors.items() if t.role == "statistic")
        return self._gradients(w, DropoutMasks(0), self._arrays(data))

    def _gradients(
        self,
        w: dict[str, Array],
        masks: DropoutMasks,
        batch: tuple[Array, Array],
        class_weights: Array | None = None,
    ) -> tuple[float, dict[str, Array]]:
        grads: dict[str, Array] = {}
        inputs, targets = batch
        backwards = []
        outputs = inputs.astype(self._dtype, copy=False)
        for index, layer in enumerate(self._layers):
            free = index > 0 and memory.overwrites(layer, self._layers[index - 1])
            call = LayerCall(index, w, grads, masks, in_place=free, first=index <= self._first)
            outputs, backward = forward(layer, call, outputs)
            backwards.append(backward)
        loss, dy = _loss(self._task.objective, outputs, targets, class_weights)
        del outputs
        # popping frees what a layer stored; below the first trained layer no gradient is needed
        while len(backwards) > self._first:
            dy = backwards.pop()(dy)
        return loss, {name: grads[name] for name in self._trained}

    def _within_memory(self, plan: LocalRound, shape: tuple[int, ...]) -> LocalRound:
        """Return the plan with a micro batch that fits into the process's memory."""
        if not plan.memory_bytes:
            return plan
        size = self._dtype.itemsize
        available = plan.memory_bytes - self._initial_rss_bytes
        micro = memory.largest_micro_batch(available, self._layers, shape, plan.settings, size)
        if micro is None:
            least = memory.memory_needed(self._layers, 1, shape, plan.settings, size)
            raise TrainingFailed(
                f"training takes {_mebibytes(self._initial_rss_bytes + least)} with one example at "
                f"a time, this device gives it {_mebibytes(plan.memory_bytes)}"
            )
        return replace(plan, settings=replace(plan.settings, micro_batch=micro))

    @cached_property
    def _initial_rss_bytes(self) -> int:
        """The resident memory before the first training: later it includes freed memory."""
        return rss_bytes(os.getpid()) or 0

    def _named(self, weights: Weights) -> dict[str, Array]:
        expected = {name: tensor.shape for name, tensor in self._tensors.items()}
        check_same_names(self._task, expected, weights)
        return {
            name: array.astype(self._dtype, copy=False)
            for name, array in weights.arrays().items()
            if self._tensors[name].role != "count"
        }

    def _arrays(self, data: Split) -> tuple[Array, Array]:
        pair = as_pair(data, self._task)
        if pair is None:
            raise ConfigError(
                f"task {self._task.name} gives data of type {type(data).__name__}; the numpy "
                "engine needs a pair of arrays"
            )
        inputs, targets = pair
        if not len(inputs):
            raise ConfigError(f"task {self._task.name} gives no examples")
        require_inputs(inputs, self._layers, self._task)
        costs = memory.layer_costs(self._layers, inputs.shape[1:])
        targets = fitted(self._task, targets, costs[-1].output)
        if targets.dtype.kind == "f":
            targets = targets.astype(self._dtype, copy=False)
        return inputs, targets


class _Training:
    """One round's training: the weights, the algorithm's state, and the optimiser."""

    def __init__(self, w0: dict[str, Array], plan: LocalRound) -> None:
        self._plan, self._w0 = plan, w0
        self.w = {name: array.copy() for name, array in w0.items()}
        self._state = plan.algorithm.begin(w0, plan.state)
        self._descent = Descent(plan.settings)
        self._grads: dict[str, Array] = {}
        self.masks = DropoutMasks(plan.local_seed)

    def add(self, grads: dict[str, Array], share: float) -> None:
        """Add the gradient of a micro batch, which is overwritten, to that of the batch."""
        if share == 1.0:
            self._grads = grads
            return
        for name, grad in grads.items():
            grad *= share  # noqa: PLW2901  in place
            if name in self._grads:
                self._grads[name] += grad
            else:
                self._grads[name] = grad

    def descend(self) -> None:
        """Step along the gradient of the whole batch."""
        grads, self._grads = self._grads, {}
        norms = (float(np.linalg.norm(grad)) for grad in grads.values())
        factor = clip_factor(norms, self._plan.settings.clip_norm)
        if factor < 1:
            for grad in grads.values():
                grad *= factor  # noqa: PLW2901  in place
        direction = self._plan.algorithm.gradient(grads, self.w, self._w0, self._state)
        self._descent.step(self.w, direction)
        self.masks.begin(self._descent.steps)

    def finish(self) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """Return the update and the algorithm's state; the optimiser's is freed first."""
        self._descent = Descent(self._plan.settings)
        return self._plan.algorithm.finish(self.w, self._w0, self._state)

    def capture(self) -> dict[str, Array]:
        """Return the weights and the optimiser's state."""
        found = {f"w/{name}": array for name, array in self.w.items()}
        found.update((f"optimizer/{name}", array) for name, array in self._descent.arrays())
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
        self.masks.begin(self._descent.steps)
        return True


def _mebibytes(count: int) -> str:
    return f"{count / (1 << 20):.0f} MiB"


def _same_shapes(one: Mapping[str, Array], other: Mapping[str, Array]) -> bool:
    return {name: (a.shape, a.dtype) for name, a in one.items()} == {
        name: (a.shape, a.dtype) for name, a in other.items()
    }


def _loss(
    objective: Objective, outputs: Array, targets: Array, class_weights: Array | None = None
) -> tuple[float, Array]:
    """Return the mean loss and its gradient at the outputs, for targets that ``fitted`` gave."""
    if objective == "mean_squared_error":
        error = outputs - targets
        return float(np.mean(error * error)), error * (2.0 / error.size)
    if outputs.ndim == 2:
        return _cross_entropy(outputs, targets, class_weights)
    # one row for each place that has a class
    moved, hot = np.moveaxis(outputs, 1, -1), targets.ndim == outputs.ndim
    rows = np.moveaxis(targets, 1, -1).reshape(-1, moved.shape[-1]) if hot else targets.reshape(-1)
    loss, gradient = _cross_entropy(moved.reshape(-1, moved.shape[-1]), rows, class_weights)
    return loss, np.moveaxis(gradient.reshape(moved.shape), -1, 1)


def _cross_entropy(
    outputs: Array, targets: Array, class_weights: Array | None
) -> tuple[float, Array]:
    """Return the loss of rows; targets of two axes are probabilities, others class numbers."""
    shifted = outputs - outputs.max(1, keepdims=True)
    exps = np.exp(shifted)
    sums = exps.sum(1, keepdims=True)
    gradient = exps / sums
    weights = None if class_weights is None else class_weights.astype(outputs.dtype)
    if targets.ndim == 2:
        targets = targets if weights is None else targets * weights
        loss = float(np.mean((targets * (np.log(sums) - shifted)).sum(1)))
        gradient = gradient * targets.sum(1, keepdims=True) - targets
    else:
        rows = np.arange(len(outputs))
        losses = np.log(sums[:, 0]) - shifted[rows, targets]
        gradient[rows, targets] -= 1
        if weights is not None:
            losses *= weights[targets]
            gradient *= weights[targets][:, None]
        loss = float(np.mean(losses))
    return loss, gradient / len(outputs)
