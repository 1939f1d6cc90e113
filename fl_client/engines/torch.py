"""The torch engine: declarative models and torch modules, on the CPU or an accelerator."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray

from fl_client import layers
from fl_client.engines import _torch_layers as torch_layers
from fl_client.engines._descent import Descent
from fl_client.engines._masks import Masks
from fl_client.engines._torch_tuning import (
    Mixed,
    compiled,
    device_of,
    half_of,
    is_resident,
    moved,
    reader,
)
from fl_client.engines.base import (
    Dtype,
    Evaluation,
    Indices,
    LocalRound,
    LocalUpdate,
    Means,
    Tuning,
    as_pair,
    check_same_names,
    flat_update,
    pieces,
    run_epochs,
)
from fl_client.tasks.base import Task
from runtime.errors import ConfigError
from storage.weights import Weights

if TYPE_CHECKING:
    from fl_client.tasks.base import Split

Batch: TypeAlias = Callable[[Indices], Any]
_EVALUATION_BATCH = 256
_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_LOG = logging.getLogger(__name__)


def engine(
    task: Task, *, profile: str = "cpu", dtype: Dtype = "float32", tuning: Tuning | None = None
) -> TorchEngine:
    """Return the torch engine; the profile ``gpu`` uses an accelerator where there is one."""
    tuning = tuning or Tuning()
    device = device_of(profile, tuning)
    if profile == "gpu" and device == "cpu" and not tuning.accelerator:
        _LOG.warning("profile gpu, but torch sees no accelerator: training on the CPU")
    return TorchEngine(task, device=device, dtype=dtype, tuning=tuning)


def initial_weights(task: Task, seed: int) -> Weights:
    """Return the weights of a freshly built model, the same for the same ``seed``."""
    with _seeded(seed, "cpu"):
        return _to_weights(_module(task))


class TorchEngine:
    """Trains and evaluates a task.

    The model is built anew for every call: nothing but the weights passes from round to round.
    """

    name = "torch"

    def __init__(
        self,
        task: Task,
        *,
        device: str = "cpu",
        dtype: Dtype = "float32",
        tuning: Tuning | None = None,
    ) -> None:
        self._task = task
        self._device = torch.device(device)
        self._tuning = tuning or Tuning()
        self._half = half_of(self._device, self._tuning.precision if dtype == "float32" else "")
        self._dtype = torch.float64 if dtype == "float64" else torch.float32
        with _seeded(0, "cpu"):
            self._declarative = layers.is_declarative(task.model())

    def own_process(self) -> None:
        """Make torch deterministic, and single-threaded so that sums have one order."""
        torch.set_num_threads(1)
        # An operation that has no deterministic form warns: the user's model still trains. This
        # call sets the same switch as use_deterministic_algorithms, which also imports torch's
        # compiler: two CPU seconds at the start of every training process.
        torch.set_deterministic_debug_mode("warn")
        torch.backends.cudnn.benchmark = False

    def train(self, weights: Weights, data: Split, plan: LocalRound) -> LocalUpdate:
        """Return the update of one round of local training."""
        count, batch = self.batches(data)
        with _seeded(plan.local_seed, self._device.type):
            mixed = Mixed(self._device, self._half)
            session = _Session(self._task, self.loaded(weights), plan, mixed, self._device)
            session.forward = compiled(session.forward, self._tuning.compile)
            metrics = run_epochs(plan, count, lambda chosen: session.step(batch, chosen), session)
            with torch.no_grad():
                update, state = plan.algorithm.finish(session.w, session.w0, session.state)
        return LocalUpdate(
            flat_update(weights, _to_numpy(update)), count, metrics, _to_numpy(state)
        )

    def evaluate(self, weights: Weights, data: Split) -> Evaluation:
        """Return the mean loss and metrics on ``data``."""
        count, batch = self.batches(data)
        means = Means()
        half = Mixed(self._device, self._half).cast()
        with _seeded(0, self._device.type), torch.no_grad(), half:
            model = self.loaded(weights).eval()
            for start in range(0, count, _EVALUATION_BATCH):
                chosen = np.arange(start, min(start + _EVALUATION_BATCH, count))
                outputs, targets = self._task.predict(model, batch(chosen))
                loss = float(self._task.loss(outputs, targets))
                figures = self._task.metrics(
                    outputs.float().numpy(force=True), targets.numpy(force=True)
                )
                means.add(len(chosen), {"loss": loss, **figures})
        return means.evaluation()

    def gradients(self, weights: Weights, data: Split) -> tuple[float, dict[str, NDArray[Any]]]:
        """Return the mean loss on all of ``data`` as one batch, and its gradient by name."""
        count, batch = self.batches(data)
        model = self.loaded(weights).train()
        torch_layers.use_masks(model, Masks(0))
        loss = self._task.training_step(model, batch(np.arange(count)))
        parameters = dict(model.named_parameters())
        grads = torch.autograd.grad(loss, list(parameters.values()))
        return float(loss.detach()), _to_numpy(dict(zip(parameters, grads, strict=True)))

    def loaded(self, weights: Weights) -> torch.nn.Module:
        """Return the task's module with the weights in it; ConfigError when they are not its."""
        model = _module(self._task)
        tensors = model.state_dict()
        expected = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        check_same_names(self._task, expected, weights)
        arrays = weights.arrays()
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(_tensor(arrays[name]))
        if self._dtype == torch.float64:
            model = model.double()
        return model.to(self._device)

    def batches(self, data: Split) -> tuple[int, Batch]:
        """Return the number of examples and a function from indices to a batch on the device."""
        pair = as_pair(data)
        count = len(cast("Any", data) if pair is None else pair[0]) if data is not None else 0
        if not count:
            raise ConfigError(f"task {self._task.name} gives no examples")
        if pair is None:
            read = reader(data, self._tuning.loader_threads)
            return count, lambda chosen: moved(read(chosen), self._device)
        inputs, targets = (self._tensor(array) for array in pair)
        if self._declarative:
            inputs = inputs.to(self._dtype)
        if is_resident(inputs.nbytes + targets.nbytes, self._device):
            inputs, targets = inputs.to(self._device), targets.to(self._device)

        def batch(chosen: Indices) -> Any:
            index = torch.from_numpy(chosen).to(inputs.device)
            return moved((inputs[index], targets[index]), self._device)

        return count, batch

    def _tensor(self, array: NDArray[Any]) -> torch.Tensor:
        """Return the array as a tensor; labels become int64 as torch wants them."""
        if array.dtype.kind == "f":
            array = array.astype(str(self._dtype).removeprefix("torch."), copy=False)
        elif array.dtype.kind in "ui":
            array = array.astype(np.int64, copy=False)
        return _tensor(array)


class _Session:
    """One round's training: the model, the algorithm's view of it, and the local optimiser."""

    def __init__(
        self,
        task: Task,
        model: torch.nn.Module,
        plan: LocalRound,
        mixed: Mixed,
        device: torch.device,
    ) -> None:
        self._task, self._model, self._plan = task, model.train(), plan
        self._mixed, self._device = mixed, device
        self.forward = model
        self._trainable = {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        if not self._trainable:
            raise ConfigError(f"the model of task {task.name} has nothing to train")
        self._optimizer = task.optimizer(self._trainable.values())
        self._descent = Descent(plan.settings)
        self._masks, self._steps = Masks(plan.local_seed), 0
        torch_layers.use_masks(model, self._masks)
        # state_dict() shares memory with the model, so that w follows every step
        self.w = {
            name: tensor
            for name, tensor in model.state_dict().items()
            if tensor.is_floating_point()
        }
        self.w0 = {name: tensor.clone() for name, tensor in self.w.items()}
        given = {
            name: torch.from_numpy(np.array(array)).to(device) for name, array in plan.state.items()
        }
        self.state = plan.algorithm.begin(self.w0, given)

    def step(self, batch: Batch, chosen: Indices) -> float:
        """Train on one batch and return its loss."""
        total, g = 0.0, dict[str, torch.Tensor]()
        for piece, share in pieces(chosen, self._plan.settings):
            loss, grads = self._gradients(batch(piece))
            total += loss * share
            if share == 1.0:
                g = grads
                continue
            for name, grad in grads.items():
                g[name] = grad * share if name not in g else g[name].add_(grad * share)
        if not self._mixed.overflowed(g):
            with torch.no_grad():
                self._descend(self._plan.algorithm.gradient(g, self.w, self.w0, self.state))
        self._steps += 1
        self._masks.begin(self._steps)
        return total

    def _gradients(self, batch: Any) -> tuple[float, dict[str, torch.Tensor]]:
        algorithm = self._plan.algorithm
        with self._mixed.cast():
            loss = self._task.training_step(self.forward, batch)
        objective = loss
        if algorithm.needs_loss:
            live = {**self.w, **self._trainable}
            objective = algorithm.loss(loss, live, self.w0, self.state)
        return float(loss.detach()), self._mixed.gradients(objective, self._trainable)

    def _descend(self, g: Mapping[str, torch.Tensor]) -> None:
        if self._optimizer is None:
            self._descent.step(self._trainable, g)
            return
        for name, parameter in self._trainable.items():
            parameter.grad = g.get(name)
        self._optimizer.step()

    def capture(self) -> dict[str, NDArray[Any]]:
        """Return the model, the optimiser's state and torch's random numbers."""
        found: dict[str, Any] = {
            f"model/{name}": tensor for name, tensor in self._model.state_dict().items()
        }
        found.update((f"optimizer/{name}", tensor) for name, tensor in self._descent.arrays())
        if self._optimizer is not None:
            for index, state in self._optimizer.state_dict()["state"].items():
                kept = {key: value for key, value in state.items() if value is not None}
                found.update((f"own/{index}/{key}", value) for key, value in kept.items())
        found["steps"] = np.array([self._steps], np.int64)
        found["random/cpu"] = torch.get_rng_state()
        if self._device.type == "cuda":
            found["random/cuda"] = torch.cuda.get_rng_state(self._device)
        return _to_numpy(found) | self._mixed.capture()

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> bool:
        """Take captured arrays back; False when they are not of this model on this device."""
        model = self._model.state_dict()
        expected = {f"model/{name}": tuple(tensor.shape) for name, tensor in model.items()}
        given = {n: tuple(a.shape) for n, a in arrays.items() if n.startswith("model/")}
        if given != expected or ("random/cuda" in arrays) != (self._device.type == "cuda"):
            return False
        if not self._mixed.fits(arrays):
            return False
        self._mixed.restore(arrays)
        with torch.no_grad():
            for name, tensor in model.items():
                tensor.copy_(_tensor(arrays[f"model/{name}"]))
        self._steps = self._descent.steps = int(arrays["steps"][0])
        self._masks.begin(self._steps)
        for name, array in _under("optimizer", arrays):
            self._descent.put(name, _tensor(array).to(self._device, copy=True))
        if self._optimizer is not None:
            self._restore_own(self._optimizer, arrays)
        torch.set_rng_state(_tensor(arrays["random/cpu"]))
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(_tensor(arrays["random/cuda"]), self._device)
        return True

    def _restore_own(
        self, optimizer: torch.optim.Optimizer, arrays: Mapping[str, NDArray[Any]]
    ) -> None:
        """Give a task's own optimiser its state back; the groups are those it was made with."""
        saved = optimizer.state_dict()
        state: dict[int, dict[str, Any]] = {}
        for path, array in _under("own", arrays):
            index, _, key = path.partition("/")
            state.setdefault(int(index), {})[key] = _tensor(array).clone()
        optimizer.load_state_dict({**saved, "state": state})


def _under(folder: str, arrays: Mapping[str, NDArray[Any]]) -> Iterator[tuple[str, NDArray[Any]]]:
    for name, array in arrays.items():
        if name.startswith(folder + "/"):
            yield name.removeprefix(folder + "/"), array


@contextmanager
def _seeded(seed: int, device_type: str) -> Iterator[None]:
    """Seed torch's random numbers within the block, and put them back as they were after it."""
    cuda = [torch.cuda.current_device()] if device_type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        yield


def _module(task: Task) -> torch.nn.Module:
    model = task.model()
    if isinstance(model, torch.nn.Module):
        return model
    if not layers.is_declarative(model):
        raise ConfigError(
            f"model() of task {task.name} must return a list of layers or a torch module, "
            f"not {type(model).__name__}"
        )
    return torch_layers.module(model)


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    # torch warns of a read-only array, and shares memory with any other
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _to_numpy(named: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    return {name: _array(value) for name, value in named.items()}


def tensors(weights: Weights) -> dict[str, torch.Tensor]:
    """Return every tensor in its own type, as ``state_dict()`` of the model has it."""
    arrays = weights.arrays()
    return {
        spec.name: _tensor(arrays[spec.name]).to(_TYPES[spec.dtype], copy=True)
        for spec in weights.layout.tensors
    }


def _array(value: Any) -> NDArray[Any]:
    if isinstance(value, torch.Tensor):
        # numpy has no bfloat16
        wide = value.float() if value.dtype == torch.bfloat16 else value
        return wide.numpy(force=True)
    return np.asarray(value)


def _to_weights(model: torch.nn.Module) -> Weights:
    tensors = model.state_dict()
    half = {name: "BF16" for name, tensor in tensors.items() if tensor.dtype == torch.bfloat16}
    return Weights.from_arrays(_to_numpy(tensors), half)
