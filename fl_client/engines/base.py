"""What an engine is, and what all engines share: the order of the batches and the training loop.

An engine computes the derivatives. The order is drawn by numpy in all of them, so that two engines
take the same steps.
"""

from __future__ import annotations

import hashlib
import importlib
import itertools
import pkgutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from fl_client.models.local_round import Checkpoint, Evaluation, LocalRound, LocalUpdate
from fl_client.models.settings import TrainingSettings
from runtime.errors import ConfigError, MissingExtra, RengoError
from storage.weights import Vector, Weights

if TYPE_CHECKING:
    from fl_client.tasks.base import Task
    from fl_client.tasks.split import Split

Dtype: TypeAlias = Literal["float32", "float64"]
Precision: TypeAlias = Literal["auto", "float32", "bfloat16", "float16"]
Indices: TypeAlias = NDArray[np.int64]
_POSITION = "place"


class TrainingFailed(RengoError):
    """Local training gave no usable update, for example because it diverged."""


class Resumable(Protocol):
    """The state of an engine's training between two steps, as named arrays."""

    def capture(self) -> dict[str, NDArray[Any]]:
        """Return the state, which may share memory with the training."""
        ...

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> bool:
        """Set a captured state; False, with nothing changed, when it is of another training."""
        ...


@dataclass(frozen=True)
class Tuning:
    """How an engine uses the machine. Apart from rounding, the result does not depend on it.

    Attributes:
        accelerators: what this process may use (``cuda:0``, ``mps``, ``cpu``), which are the only
            ones it sees; if empty, the profile decides. Several share each batch: as with micro
            batches, batch normalisation then gives another result, and so does a torch module
            that draws random numbers.
        precision: of the layers' products; "auto" is 16 bits where the accelerator supports it.
        compile: a backend of ``torch.compile``, for example ``inductor``; "" for none.
        loader_threads: threads that read a Dataset's items. Random numbers drawn in them then
            differ from run to run.
    """

    accelerators: tuple[str, ...] = ()
    precision: Precision = "auto"
    compile: str = ""
    loader_threads: int = 0


class Engine(Protocol):
    """Trains and evaluates one task. Calls do not depend on earlier calls."""

    name: str

    def own_process(self) -> None:
        """Configure the whole process for this engine: called once, in a process of its own."""
        ...

    def train(self, weights: Weights, data: Split, plan: LocalRound) -> LocalUpdate:
        """Return the update of one round of local training."""
        ...

    def evaluate(self, weights: Weights, data: Split) -> Evaluation:
        """Return the mean loss and metrics on ``data``."""
        ...

    def personal(self, weights: Weights, data: Split, plan: LocalRound) -> Weights | None:
        """Return what the device predicts with, None where it is ``weights``.

        Args:
            data: what the device trains on.
        """
        ...

    def gradients(self, weights: Weights, data: Split) -> tuple[float, dict[str, NDArray[Any]]]:
        """Return the mean loss on all of ``data`` as one batch, and its gradient by name."""
        ...


def names() -> list[str]:
    """Return the names of the engines, without importing any."""
    found = pkgutil.iter_modules([str(Path(__file__).parent)])
    return sorted(
        each.name
        for each in found
        if not (each.ispkg or each.name == "base" or each.name[0] == "_")
    )


def load_engine(
    name: str,
    task: Task,
    *,
    profile: str = "cpu",
    dtype: Dtype = "float32",
    tuning: Tuning | None = None,
) -> Engine:
    """Return the engine ``name`` for ``task``.

    Raises:
        ConfigError: no such engine, or one that cannot run this task; the text says why.
        MissingExtra: its library is not installed.
    """
    if name not in names():
        raise ConfigError(f"no engine {name!r}; there are: {', '.join(names())}")
    try:
        module = importlib.import_module(f"fl_client.engines.{name}")
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise MissingExtra(name, name) from error
    return cast(
        Engine, module.engine(task, profile=profile, dtype=dtype, tuning=tuning or Tuning())
    )


def batches(generator: np.random.Generator, count: int, size: int) -> Iterator[Indices]:
    """Yield the indices of one epoch's batches; the last may be smaller."""
    order = generator.permutation(count)
    for start in range(0, count, size):
        yield order[start : start + size]


def pieces(chosen: Indices, settings: TrainingSettings) -> Iterator[tuple[Indices, float]]:
    """Yield the micro batches of a batch, each with its weight in the batch's mean."""
    size = settings.micro_batch or len(chosen)
    for start in range(0, len(chosen), size):
        piece = chosen[start : start + size]
        yield piece, len(piece) / len(chosen)


def steps_of(settings: TrainingSettings, count: int) -> int:
    """Return how many steps a round's training on ``count`` examples has."""
    steps = settings.local_epochs * -(-count // settings.batch_size)
    return min(steps, settings.max_steps) if settings.max_steps else steps


def run_epochs(
    plan: LocalRound,
    count: int,
    step: Callable[[Indices], float],
    training: Resumable | None = None,
) -> dict[str, float]:
    """Call ``step`` with every batch's indices, in the order that the plan's seed gives.

    Args:
        step: trains on a batch and returns its mean loss.
        training: what the plan's checkpoint saves and restores beside the position in the loop.

    Returns:
        ``train_loss``, the mean over the last whole epoch's examples, or over the examples so
        far if ``max_steps`` ends the first epoch early.

    Raises:
        TrainingFailed: the loss is no longer a finite number.
    """
    loop = _Loop(plan, count)
    if plan.checkpoint is not None and training is not None:
        loop.load(plan.checkpoint, training)
    begun_s = time.monotonic()
    while loop.steps < loop.end:
        for chosen in loop.rest_of_epoch():
            loop.add_step(step(chosen), len(chosen))
            plan.tally.steps += 1
            plan.progress(loop.steps / loop.end, loop.mean)
            if plan.checkpoint is not None and training is not None and plan.checkpoint.due():
                plan.checkpoint.save({**training.capture(), _POSITION: loop.position()})
    plan.tally.steps_s = time.monotonic() - begun_s
    plan.progress(1.0, loop.mean)
    mean = loop.mean if loop.mean is not None or not loop.seen else loop.loss_sum / loop.seen
    return {} if mean is None else {"train_loss": mean}


class _Loop:
    """The position in a round's training: the steps taken, and the losses of this epoch so far."""

    def __init__(self, plan: LocalRound, count: int) -> None:
        self._plan, self._count = plan, count
        self._per_epoch = -(-count // plan.settings.batch_size)
        self.end = steps_of(plan.settings, count)
        plan.tally.full_steps = plan.settings.local_epochs * self._per_epoch
        plan.tally.micro_batch = plan.settings.micro_batch
        self.steps, self.seen, self.loss_sum = 0, 0, 0.0
        self.mean: float | None = None
        self._generator = np.random.default_rng(plan.local_seed)

    def rest_of_epoch(self) -> Iterator[Indices]:
        """Yield the remaining batches of the epoch; ``add_step`` must be called after each."""
        started = self.steps % self._per_epoch
        last = min(self._per_epoch, started + self.end - self.steps)
        order = batches(self._generator, self._count, self._plan.settings.batch_size)
        return itertools.islice(order, started, last)

    def add_step(self, loss: float, size: int) -> None:
        """Count a step and its loss; raises TrainingFailed when it is not finite."""
        settings = self._plan.settings
        if not np.isfinite(loss):
            raise TrainingFailed(
                f"training diverged: the loss is {loss} in local epoch "
                f"{self.steps // self._per_epoch + 1} of {settings.local_epochs} "
                f"(learning_rate {settings.learning_rate})"
            )
        self.steps += 1
        self.loss_sum += loss * size
        self.seen += size
        if self.steps % self._per_epoch == 0:
            self.mean = self.loss_sum / self._count
            self.loss_sum, self.seen = 0.0, 0

    def position(self) -> NDArray[np.int64]:
        """Return the position as integers, floats by their bits: a file stores it exactly."""
        mean = np.nan if self.mean is None else self.mean
        floats = np.array([self.loss_sum, mean], np.float64).view(np.int64)
        return np.array([self._fingerprint(), self.steps, self.seen, *floats], np.int64)

    def load(self, checkpoint: Checkpoint, training: Resumable) -> None:
        """Continue from the saved position, unless there is none or it is of another training."""
        saved = checkpoint.load()
        position = None if saved is None else saved.pop(_POSITION, None)
        if saved is None or position is None:
            return
        if position.shape != (5,) or position[0] != self._fingerprint():
            return
        if not training.restore(saved):
            return
        self.steps, self.seen = int(position[1]), int(position[2])
        self.loss_sum, mean = (float(value) for value in position[3:].view(np.float64))
        self.mean = None if np.isnan(mean) else mean
        for _ in range(self.steps // self._per_epoch):
            # each epoch's order is drawn from the same generator, one after the other
            self._generator.permutation(self._count)

    def _fingerprint(self) -> int:
        """Return a number that differs for another training, whose saved arrays do not fit."""
        settings = replace(self._plan.settings, micro_batch=0)
        text = repr((self._count, self._plan.local_seed, self._plan.algorithm, settings))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big", signed=True)


class Means:
    """Means of named metrics over batches of different sizes.

    A metric's mean is over the examples of the batches that have it: one that is missing or NaN, as
    a recall without positives is, says nothing of its batch. Only the loss must be a number.
    """

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._count = 0

    def add(self, size: int, metrics: Mapping[str, float]) -> None:
        """Add a batch of ``size`` examples whose means are ``metrics``."""
        self._count += size
        for name, value in metrics.items():
            if name == "loss" or not np.isnan(value):
                self._sums[name] = self._sums.get(name, 0.0) + float(value) * size
                self._counts[name] = self._counts.get(name, 0) + size

    def evaluation(self) -> Evaluation:
        """Return the means over the examples that were added."""
        means = {name: value / self._counts[name] for name, value in self._sums.items()}
        return Evaluation(self._count, means)


def flat_update(weights: Weights, named: Mapping[str, NDArray[Any]]) -> Vector:
    """Return named float arrays as one vector in the order of the layout, zeros for the others.

    Raises:
        ConfigError: an array is no tensor of the layout, or has another shape.
    """
    layout = weights.layout
    for name in named.keys() - layout.offsets.keys():
        raise ConfigError(f"weights {name!r}: the model has no such tensor")
    vector = np.zeros(layout.size, np.float32)
    for spec in layout.floats:
        found = named.get(spec.name)
        if found is None:
            continue
        if tuple(found.shape) != spec.shape:
            raise ConfigError(
                f"weights {spec.name!r}: expected shape {spec.shape}, got {tuple(found.shape)}"
            )
        vector[layout.offsets[spec.name]] = found.reshape(-1)
    return vector


def check_same_names(task: Task, expected: Mapping[str, tuple[int, ...]], weights: Weights) -> None:
    """Raise ConfigError when the global model is not the model of the task, naming a tensor."""
    given = {spec.name: spec.shape for spec in weights.layout.tensors}
    for name in [*expected, *given]:
        if expected.get(name) != given.get(name):
            raise ConfigError(
                f"the global model does not fit task {task.name}: {name!r} is "
                f"{given.get(name, 'missing')} there and {expected.get(name, 'missing')} here"
            )
