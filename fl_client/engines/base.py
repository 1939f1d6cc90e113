"""What an engine is, and what every engine shares: the order of the batches and the loop.

An engine owns the derivatives. The order comes from numpy in all of them, so that two engines
take the same steps.
"""

from __future__ import annotations

import hashlib
import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from algorithms.base import Algorithm
from runtime.errors import ConfigError, MissingExtra, RengoError
from storage.weights import Vector, Weights

if TYPE_CHECKING:
    from fl_client.tasks.base import Split, Task, TrainingSettings

Dtype: TypeAlias = Literal["float32", "float64"]
Progress: TypeAlias = Callable[[float, float | None], None]
"""Called at every step with the fraction done and the mean loss of the last whole epoch."""


class TrainingFailed(RengoError):
    """Local training gave no usable update, for example because it diverged."""


def no_progress(fraction: float, loss: float | None) -> None:
    """Report to nobody."""


@dataclass(frozen=True)
class LocalRound:
    """What one device's training in one round is a function of, beside weights and data.

    Attributes:
        seed: the run's seed.
        device_id: with ``seed`` and ``round`` it fixes the order of the batches.
        state: the algorithm's client state after this device's last accepted update.
    """

    algorithm: Algorithm
    settings: TrainingSettings
    seed: int
    round: int
    device_id: str
    state: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    progress: Progress = no_progress

    @property
    def local_seed(self) -> int:
        """A seed for this device and round alone."""
        text = f"{self.seed}/{self.round}/{self.device_id}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


class LocalUpdate(NamedTuple):
    """What a device sends, of the algorithm's ``kind``, and the client state to keep."""

    vector: Vector
    num_examples: int
    metrics: dict[str, float]
    state: Mapping[str, NDArray[Any]] = {}


class Evaluation(NamedTuple):
    """Means over ``num_examples`` held-out examples; ``loss`` is among the metrics."""

    num_examples: int
    metrics: dict[str, float]


class Engine(Protocol):
    """Trains and evaluates one task. It keeps nothing from one call to the next."""

    name: str

    def own_process(self) -> None:
        """Set the whole process up for this engine: called once, by a process that is its own."""
        ...

    def train(self, weights: Weights, data: Split, plan: LocalRound) -> LocalUpdate:
        """Return the update of one round of local training."""
        ...

    def evaluate(self, weights: Weights, data: Split) -> Evaluation:
        """Return the mean loss and metrics on ``data``."""
        ...

    def gradients(self, weights: Weights, data: Split) -> tuple[float, dict[str, NDArray[Any]]]:
        """Return the mean loss on all of ``data`` as one batch, and its gradient by name."""
        ...


def names() -> list[str]:
    """Return the names of the engines, without importing any."""
    found = (module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return sorted(name for name in found if name != "base" and name[0] != "_")


def load_engine(name: str, task: Task, *, profile: str = "cpu", dtype: Dtype = "float32") -> Engine:
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
    return cast(Engine, module.engine(task, profile=profile, dtype=dtype))


def batches(generator: np.random.Generator, count: int, size: int) -> Iterator[NDArray[np.int64]]:
    """Yield the indices of one epoch's batches; the last may be smaller."""
    order = generator.permutation(count)
    for start in range(0, count, size):
        yield order[start : start + size]


def run_epochs(
    plan: LocalRound, count: int, step: Callable[[NDArray[np.int64]], float]
) -> dict[str, float]:
    """Call ``step`` with every batch's indices in the order that the plan fixes.

    Args:
        step: trains on a batch and returns its mean loss.

    Returns:
        ``train_loss``, the mean over the last epoch's examples.

    Raises:
        TrainingFailed: the loss is no longer a finite number.
    """
    settings, generator = plan.settings, np.random.default_rng(plan.local_seed)
    total, done, mean = settings.local_epochs * count, 0, None
    for epoch in range(settings.local_epochs):
        loss_sum = 0.0
        for chosen in batches(generator, count, settings.batch_size):
            loss = step(chosen)
            if not np.isfinite(loss):
                raise TrainingFailed(
                    f"training diverged: the loss is {loss} in local epoch {epoch + 1} of "
                    f"{settings.local_epochs} (learning_rate {settings.learning_rate})"
                )
            loss_sum += loss * chosen.size
            done += chosen.size
            plan.progress(done / total, mean)
        mean = loss_sum / count
    plan.progress(1.0, mean)
    return {} if mean is None else {"train_loss": mean}


class Means:
    """Means of named figures over batches of different sizes."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._count = 0

    def add(self, size: int, figures: Mapping[str, float]) -> None:
        """Count a batch of ``size`` examples whose means are ``figures``."""
        self._count += size
        for name, value in figures.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value) * size

    def evaluation(self) -> Evaluation:
        """Return the means over everything that was added."""
        return Evaluation(
            self._count, {name: value / self._count for name, value in self._sums.items()}
        )


def as_pair(data: Split) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """Return inputs and targets when ``data`` is two arrays, None when it is anything else.

    Raises:
        ConfigError: two arrays of different lengths.
    """
    if not (isinstance(data, tuple | list) and len(data) == 2):
        return None
    inputs, targets = np.asarray(data[0]), np.asarray(data[1])
    if inputs.shape[:1] != targets.shape[:1] or not inputs.ndim:
        raise ConfigError(
            f"data() gave inputs of shape {inputs.shape} but targets of shape {targets.shape}"
        )
    return inputs, targets


def flat_update(weights: Weights, named: Mapping[str, NDArray[Any]]) -> Vector:
    """Return named float arrays as one vector in the order of the layout.

    Raises:
        ConfigError: a tensor of the layout is missing or has another shape.
    """
    vector = np.empty(weights.layout.size, np.float32)
    for spec in weights.layout.floats:
        found = named.get(spec.name)
        if found is None or tuple(found.shape) != spec.shape:
            got = "nothing" if found is None else f"shape {tuple(found.shape)}"
            raise ConfigError(f"weights {spec.name!r}: expected shape {spec.shape}, got {got}")
        vector[weights.layout.offsets[spec.name]] = found.reshape(-1)
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
