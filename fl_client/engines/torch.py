"""The torch engine: declarative models and torch modules, on the CPU or on accelerators."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray

from fl_client.engines._client_half import local_update, received_vectors
from fl_client.engines._examples import as_pair, require_inputs
from fl_client.engines._torch_loss import TaskLoss
from fl_client.engines._torch_replicas import Replicas, seed_devices
from fl_client.engines._torch_training import TorchData, TorchTraining
from fl_client.engines._torch_tuning import (
    MixedPrecision,
    devices_of,
    half_of,
    is_resident,
    reader,
    to_device,
)
from fl_client.engines.base import (
    Dtype,
    Indices,
    Means,
    Tuning,
    check_same_names,
    flat_update,
    run_epochs,
)
from fl_client.models import layers, memory
from fl_client.models.dropout import DropoutMasks
from fl_client.models.local_round import Evaluation, LocalRound, LocalUpdate
from fl_client.models.parts import ModelParts, parts_of_layers
from fl_client.models.settings import TrainingSettings
from fl_client.tasks.base import Task
from fl_client.tasks.torch_module import module_of
from fl_client.tasks.user_code import model_of, numbers_of
from fl_client.torch_models.layers import use_masks
from fl_client.torch_models.normalisation import single_values
from fl_client.torch_models.parts import parts_of_module
from fl_client.torch_models.tensors import to_numpy, to_tensor
from runtime.errors import ConfigError
from storage.weights import Weights

if TYPE_CHECKING:
    from fl_client.tasks.split import Split

Batch: TypeAlias = Callable[[Indices], Any]
_EVALUATION_BATCH = 256
_CPU = torch.device("cpu")
_LOG = logging.getLogger(__name__)


def engine(
    task: Task, *, profile: str = "cpu", dtype: Dtype = "float32", tuning: Tuning | None = None
) -> TorchEngine:
    """Return the torch engine; the profile ``gpu`` uses an accelerator where there is one."""
    tuning = tuning or Tuning()
    devices = devices_of(profile, tuning)
    if profile == "gpu" and devices[0].type == "cpu" and not tuning.accelerators:
        _LOG.warning("profile gpu, but torch sees no accelerator: training on the CPU")
    return TorchEngine(task, devices=devices, dtype=dtype, tuning=tuning)


class TorchEngine:
    """Trains and evaluates a task.

    Every call builds the model anew: only the weights pass from round to round.

    With several devices, several threads call a task's methods at once, each with its own model.
    """

    name = "torch"

    def __init__(
        self,
        task: Task,
        *,
        devices: Sequence[torch.device] = (_CPU,),
        dtype: Dtype = "float32",
        tuning: Tuning | None = None,
    ) -> None:
        self._task = task
        self._devices = list(devices)
        self._tuning = tuning or Tuning()
        half = half_of(self._devices, self._tuning.precision if dtype == "float32" else "")
        self._mixed = partial(MixedPrecision, self._devices[0], half, replicas=len(self._devices))
        self._dtype = torch.float64 if dtype == "float64" else torch.float32
        with _seeded(0, [_CPU]):
            model = model_of(task)
        self._layers = cast("layers.Layers", model) if layers.is_declarative(model) else None
        # what floats of the data become: the type of the module's weights, if they have one type
        self._floats = _float_type(model, self._dtype)

    def own_process(self) -> None:
        """Make torch deterministic, and single-threaded so that sums have one order."""
        torch.set_num_threads(1)
        # An operation without a deterministic form only warns, so that the user's model trains.
        # This call does the same as use_deterministic_algorithms, which also imports torch's
        # compiler: two CPU seconds at the start of every training process.
        torch.set_deterministic_debug_mode("warn")
        torch.backends.cudnn.benchmark = False

    def train(self, weights: Weights, data: Split, plan: LocalRound) -> LocalUpdate:
        """Return the update of one round of local training."""
        with self._training(weights, data, plan) as training:
            training.begin()
            count = training.half.local.num_examples
            metrics = run_epochs(plan, count, training.step, training)
            sent, state = training.finish()
        return local_update(weights, sent, state, count, metrics)

    def personal(self, weights: Weights, data: Split, plan: LocalRound) -> Weights | None:
        """Return what the device predicts with, None where it is ``weights``."""
        with self._training(weights, data, plan) as training:
            found = training.personal()
        if found is None:
            return None
        return weights.with_vector(flat_update(weights, to_numpy(found)))

    @contextmanager
    def _training(self, weights: Weights, data: Split, plan: LocalRound) -> Iterator[TorchTraining]:
        examples, received = (
            TorchData(*self._reader(data, plan.settings)),
            received_vectors(weights, plan),
        )
        mixed, backend = self._mixed(), self._tuning.compile
        with _seeded(plan.local_seed, self._devices), self._replicas(weights) as replicas:
            parts = self._parts(replicas.models[0])
            yield TorchTraining(examples, replicas, plan, received, parts, mixed, backend)

    def _parts(self, model: torch.nn.Module) -> ModelParts:
        if self._layers is not None:
            return parts_of_layers(self._layers, self._task.head)
        return parts_of_module(model, self._task.head)

    def evaluate(self, weights: Weights, data: Split) -> Evaluation:
        """Return the mean loss and metrics on ``data``."""
        count, read, loss = self._reader(data)
        means, mixed = Means(), self._mixed()
        cuts = range(_EVALUATION_BATCH, count, _EVALUATION_BATCH)
        batches = np.array_split(np.arange(count), cuts)
        with _seeded(0, self._devices), self._replicas(weights) as replicas:
            models = [model.eval() for model in replicas.models]

            def measure(number: int, batch: Any) -> dict[str, float]:
                with torch.no_grad(), mixed.cast():
                    outputs, targets, value = loss.measured(models[number], batch)
                    found = {"loss": float(value)}
                named = to_numpy({"outputs": outputs.float(), "targets": targets})
                metrics = self._task.metrics(**named)
                return {**found, **numbers_of(self._task, "metrics", metrics)}

            with single_values(*models):
                for start in range(0, len(batches), len(replicas)):
                    group = batches[start : start + len(replicas)]
                    found = replicas.each(measure, read, group)
                    for chosen, metrics in zip(group, found, strict=True):
                        means.add(len(chosen), metrics)
        return means.evaluation()

    def gradients(self, weights: Weights, data: Split) -> tuple[float, dict[str, NDArray[Any]]]:
        """Return the mean loss on all of ``data`` as one batch, and its gradient by name."""
        count, read, losses = self._reader(data)
        model = self.load_module(weights).train()
        use_masks(model, DropoutMasks(0))
        loss = losses.of_step(model, to_device(read(np.arange(count)), self._devices[0]))
        parameters = dict(model.named_parameters())
        grads = torch.autograd.grad(loss, list(parameters.values()))
        return float(loss.detach()), to_numpy(dict(zip(parameters, grads, strict=True)))

    def _replicas(self, weights: Weights) -> Replicas:
        return Replicas([self._build(weights).to(each) for each in self._devices], self._devices)

    def load_module(self, weights: Weights) -> torch.nn.Module:
        """Return the task's module with these weights, on the first device.

        Raises:
            ConfigError: the weights are not of this module.
        """
        return self._build(weights).to(self._devices[0])

    def _build(self, weights: Weights) -> torch.nn.Module:
        model = module_of(self._task)
        tensors = model.state_dict()
        expected = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        check_same_names(self._task, expected, weights)
        arrays = weights.arrays()
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(to_tensor(arrays[name]))
        return model.double() if self._dtype == torch.float64 else model

    def batches(self, data: Split) -> tuple[int, Batch]:
        """Return the number of examples and a function from indices to a batch on the device."""
        count, read, _ = self._reader(data)
        return count, lambda chosen: to_device(read(chosen), self._devices[0])

    def _reader(
        self, data: Split, settings: TrainingSettings | None = None
    ) -> tuple[int, Batch, TaskLoss]:
        """Return the number of examples, a function from indices to a batch, and the batches' loss.

        A batch may be on any device. Two arrays are kept in the first device's memory if they fit;
        other devices copy from it.
        """
        pair = as_pair(data, self._task)
        count = len(cast("Any", data) if pair is None else pair[0]) if data is not None else 0
        if not count:
            raise ConfigError(f"task {self._task.name} gives no examples")
        targets_of_all, leaves_out = pair and pair[1], self._layers is None
        loss = TaskLoss(self._task, targets_of_all, leaves_out=leaves_out, settings=settings)
        if pair is None:
            items = reader(data, self._tuning.loader_threads)
            return count, lambda chosen: self._typed(items(chosen)), loss
        inputs, targets = (self._tensor(array) for array in pair)
        if self._layers is not None:
            require_inputs(pair[0], self._layers, self._task)
            memory.layer_costs(self._layers, pair[0].shape[1:])
            inputs = inputs.to(self._dtype)
        elif inputs.is_floating_point():
            inputs = inputs.to(self._floats)
        first = self._devices[0]
        if is_resident(inputs.nbytes + targets.nbytes, first):
            inputs, targets = inputs.to(first), targets.to(first)

        def read(chosen: Indices) -> Any:
            index = torch.from_numpy(chosen).to(inputs.device)
            return inputs[index], targets[index]

        return count, read, loss

    def _typed(self, batch: Any) -> Any:
        """Return a batch of a Dataset with its inputs in the type of the weights."""
        if type(self._task).predict is not Task.predict:
            return batch
        inputs, targets = batch
        floats = isinstance(inputs, torch.Tensor) and inputs.is_floating_point()
        return [inputs.to(self._floats) if floats else inputs, targets]

    def _tensor(self, array: NDArray[Any]) -> torch.Tensor:
        """Return the array as a tensor; labels become int64, as torch requires."""
        if array.dtype.kind == "f":
            array = array.astype(str(self._dtype).removeprefix("torch."), copy=False)
        elif array.dtype.kind in "ui":
            array = array.astype(np.int64, copy=False)
        return to_tensor(array)


def _float_type(model: Any, otherwise: torch.dtype) -> torch.dtype:
    """Return the type of a module's weights, ``otherwise`` if they have several or none."""
    weights = model.parameters() if isinstance(model, torch.nn.Module) else ()
    found = {weight.dtype for weight in weights if weight.is_floating_point()}
    return found.pop() if len(found) == 1 and otherwise == torch.float32 else otherwise


@contextmanager
def _seeded(seed: int, devices: Sequence[torch.device]) -> Iterator[None]:
    """Seed torch's random numbers within the block, and restore their state after it."""
    cuda = [device for device in devices if device.type == "cuda"]
    with torch.random.fork_rng(devices=cuda):
        seed_devices(seed, devices)
        yield
