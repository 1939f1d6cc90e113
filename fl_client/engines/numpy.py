"""The torch-free engine: declarative models, trained by numpy alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, cast

import numpy as np

from algorithms.base import Received
from fl_client.engines._client_half import (
    local_update,
    received_vectors,
)
from fl_client.engines._examples import as_pair, class_weights_of, fitted, require_inputs
from fl_client.engines._numpy_call import OF_ALL, Array, GradientOf, LayerCall
from fl_client.engines._numpy_layers import forward
from fl_client.engines._numpy_training import NumpyData, NumpyTraining
from fl_client.engines.base import (
    Dtype,
    Means,
    TrainingFailed,
    Tuning,
    check_same_names,
    flat_update,
    run_epochs,
)
from fl_client.models import layers, memory
from fl_client.models.dropout import DropoutMasks
from fl_client.models.local_round import Evaluation, LocalRound, LocalUpdate
from fl_client.models.parts import ModelParts, parts_of_layers
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
        self.trained = [n for n, tensor in self._tensors.items() if tensor.role == "weight"]
        if not self.trained:
            raise ConfigError(f"the model of task {task.name} has nothing to train")

    def own_process(self) -> None:
        """Do nothing: numpy's threads are limited by the process's environment."""

    def train(self, weights: Weights, data: Split, plan: LocalRound) -> LocalUpdate:
        """Return the update of one round of local training."""
        training = self._training(weights, data, plan)
        training.begin()
        count = training.half.local.num_examples
        metrics = run_epochs(plan, count, training.step, training)
        return local_update(weights, *training.finish(), count, metrics)

    def personal(self, weights: Weights, data: Split, plan: LocalRound) -> Weights | None:
        """Return what the device predicts with, None where it is ``weights``."""
        found = self._training(weights, data, plan).half.personal()
        return None if found is None else weights.with_vector(flat_update(weights, found))

    def _training(self, weights: Weights, data: Split, plan: LocalRound) -> NumpyTraining:
        if "loss" in plan.algorithm.needs:
            raise ConfigError(
                f"algorithm {type(plan.algorithm).__name__} changes the loss, which only the "
                "torch engine can do"
            )
        require_trainable(self._task, plan.settings)
        inputs, targets = self.arrays(data)
        received = received_vectors(weights, plan)
        extra = sum(array.nbytes for array in plan.state.values())
        extra += weights.vector.nbytes * (len(received) + len(plan.algorithm.sends) - 1)
        plan = self._within_memory(plan, inputs.shape[1:], extra)
        got = Received(self.named(weights), received, plan.scalars)
        outputs = memory.layer_costs(self._layers, inputs.shape[1:])[-1].output
        class_weights = class_weights_of(self._task, plan.settings, outputs[0])
        return NumpyTraining(self, got, plan, NumpyData(inputs, targets, class_weights))

    def evaluate(self, weights: Weights, data: Split) -> Evaluation:
        """Return the mean loss and metrics on ``data``."""
        inputs, targets = self.arrays(data)
        w, means = self.named(weights), Means()
        for outputs, wanted, loss in self._evaluated(w, inputs, targets):
            given = self._task.metrics(outputs, wanted)
            metrics = numbers_of(self._task, "metrics", given)
            means.add(len(outputs), {"loss": loss, **metrics})
        return means.evaluation()

    def mean_loss(self, w: dict[str, Array], inputs: Array, targets: Array) -> float:
        """Return the mean loss as an evaluation computes it."""
        means = Means()
        for outputs, _, loss in self._evaluated(w, inputs, targets):
            means.add(len(outputs), {"loss": loss})
        return means.evaluation().metrics["loss"]

    def _evaluated(
        self, w: dict[str, Array], inputs: Array, targets: Array
    ) -> Iterator[tuple[Array, Array, float]]:
        """Yield the outputs, the targets and the loss of batches that fit into little memory."""
        size = memory.evaluation_batch(self._layers, inputs.shape[1:], self._dtype.itemsize)
        for start in range(0, len(inputs), size):
            chosen = slice(start, start + size)
            outputs = inputs[chosen].astype(self._dtype, copy=False)
            for index, layer in enumerate(self._layers):
                outputs, _ = forward(layer, LayerCall(index, w, {}), outputs)
            loss, _ = _loss(self._task.objective, outputs, targets[chosen])
            yield outputs, targets[chosen], loss

    def gradients(self, weights: Weights, data: Split) -> tuple[float, dict[str, Array]]:
        """Return the mean loss on all of ``data`` as one batch, and its gradient by name."""
        # a training pass changes the running statistics, which belong to the caller
        w = self.copied_statistics(self.named(weights))
        return self.batch_gradients(w, DropoutMasks(0), self.arrays(data))

    def batch_gradients(
        self,
        w: dict[str, Array],
        masks: DropoutMasks,
        batch: tuple[Array, Array],
        of: GradientOf = OF_ALL,
    ) -> tuple[float, dict[str, Array]]:
        """Return the mean loss of a batch and its gradient; changes running statistics in ``w``."""
        grads: dict[str, Array] = {}
        trained = [name for name in self.trained if name not in of.frozen]
        # below the first trained layer no gradient is needed
        lowest = int(trained[0].partition(".")[0])
        inputs, targets = batch
        backwards = []
        outputs = inputs.astype(self._dtype, copy=False)
        for index, layer in enumerate(self._layers):
            free = index > 0 and memory.overwrites(layer, self._layers[index - 1])
            call = LayerCall(
                index, w, grads, masks, in_place=free, first=index <= lowest, frozen=of.frozen
            )
            outputs, backward = forward(layer, call, outputs)
            backwards.append(backward)
        loss, dy = _loss(self._task.objective, outputs, targets, of.class_weights)
        del outputs
        # popping frees what a layer stored
        while len(backwards) > lowest:
            dy = backwards.pop()(dy)
        return loss, {name: grads[name] for name in trained}

    def copied_statistics(self, w: dict[str, Array]) -> dict[str, Array]:
        """Return the weights with running statistics of their own."""
        own = {n: w[n].copy() for n, t in self._tensors.items() if t.role == "statistic"}
        return {**w, **own}

    @cached_property
    def parts(self) -> ModelParts:
        """The head and the normalisation of the model."""
        return parts_of_layers(self._layers, self._task.head)

    def _within_memory(self, plan: LocalRound, shape: tuple[int, ...], extra: int) -> LocalRound:
        """Return the plan with a micro batch that fits into the process's memory.

        Args:
            extra: the bytes of what the algorithm receives, keeps and sends beside the update.
        """
        if not plan.memory_bytes:
            return plan
        size = self._dtype.itemsize
        available = plan.memory_bytes - self._initial_rss_bytes - extra
        micro = memory.largest_micro_batch(available, self._layers, shape, plan.settings, size)
        if micro is None:
            least = memory.memory_needed(self._layers, 1, shape, plan.settings, size)
            needed = self._initial_rss_bytes + least + extra
            raise TrainingFailed(
                f"training takes {_mebibytes(needed)} with one example at "
                f"a time, this device gives it {_mebibytes(plan.memory_bytes)}"
            )
        return replace(plan, settings=replace(plan.settings, micro_batch=micro))

    @cached_property
    def _initial_rss_bytes(self) -> int:
        """The resident memory before the first training: later it includes freed memory."""
        return rss_bytes(os.getpid()) or 0

    def named(self, weights: Weights) -> dict[str, Array]:
        """Return the weights as named arrays, in the engine's type.

        Raises:
            ConfigError: they are not of the task's model.
        """
        expected = {name: tensor.shape for name, tensor in self._tensors.items()}
        check_same_names(self._task, expected, weights)
        return {
            name: array.astype(self._dtype, copy=False)
            for name, array in weights.arrays().items()
            if self._tensors[name].role != "count"
        }

    def arrays(self, data: Split) -> tuple[Array, Array]:
        """Return a split as inputs and targets that fit the task's model.

        Raises:
            ConfigError: it is no pair of such arrays.
        """
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


def _mebibytes(count: int) -> str:
    return f"{count / (1 << 20):.0f} MiB"


def _loss(
    objective: Objective, outputs: Array, targets: Array, class_weights: Array | None = None
) -> tuple[float, Array]:
    """Return the mean loss and its gradient at the outputs, for targets that ``fitted`` gave."""
    if objective == "mean_squared_error":
        error = outputs - targets
        return float(np.mean(error * error)), error * (2.0 / error.size)
    if objective == "binary_cross_entropy":
        return _binary_cross_entropy(outputs, targets)
    if outputs.ndim == 2:
        return _cross_entropy(outputs, targets, class_weights)
    # one row for each place that has a class
    moved, hot = np.moveaxis(outputs, 1, -1), targets.ndim == outputs.ndim
    rows = np.moveaxis(targets, 1, -1).reshape(-1, moved.shape[-1]) if hot else targets.reshape(-1)
    loss, gradient = _cross_entropy(moved.reshape(-1, moved.shape[-1]), rows, class_weights)
    return loss, np.moveaxis(gradient.reshape(moved.shape), -1, 1)


def _binary_cross_entropy(outputs: Array, targets: Array) -> tuple[float, Array]:
    """Return the loss of outputs that are log odds, each of a yes or no of its own."""
    small = np.exp(-np.abs(outputs))
    losses = np.maximum(outputs, 0) - outputs * targets + np.log1p(small)
    yes = np.where(outputs > 0, 1, small) / (1 + small)
    return float(np.mean(losses)), (yes - targets) / np.asarray(outputs.size, outputs.dtype)


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
