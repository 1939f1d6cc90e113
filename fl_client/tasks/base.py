"""What a task is: a model, a device's data and, where the defaults do not fit, how to learn.

This module imports neither numpy nor torch: a waiting agent that lists its tasks stays small.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias

from runtime.errors import ConfigError
from runtime.records import Bounds, FieldError, build, require_checked

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from fl_client.datasets.dataset import Dataset
    from fl_client.datasets.settings import DataPlace
    from fl_client.engines.base import Evaluation, LocalUpdate
    from fl_client.models.layers import Layers
    from fl_client.training.participant import LocalContext
    from storage.weights import Vector, Weights

Role: TypeAlias = Literal["trainer", "evaluator"]
Objective: TypeAlias = Literal["cross_entropy", "mean_squared_error"]
Split: TypeAlias = "tuple[NDArray[Any], NDArray[Any]] | torch.utils.data.Dataset[Any] | None"
"""Inputs and targets as two arrays, or a torch Dataset (torch engine only), or nothing."""


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How a device trains in one round. The optimiser starts anew in every round.

    Attributes:
        momentum: of SGD; Adam has its usual 0.9 and 0.999.
        max_steps: the most steps in a round, 0 for as many as the epochs give.
        micro_batch: the most examples in memory at once, 0 for the whole batch: the gradients of
            micro batches add up to the batch's mean. Batch normalisation alone sees the
            difference: its statistics are those of a micro batch.

    Raises:
        FieldError: a value that is not allowed.
    """

    local_epochs: Annotated[int, Bounds(least=1, most=100_000)] = 1
    batch_size: Annotated[int, Bounds(least=1)] = 32
    learning_rate: Annotated[float, Bounds(above=0)] = 0.1
    momentum: Annotated[float, Bounds(least=0, below=1)] = 0.0
    optimizer: Literal["sgd", "adam"] = "sgd"
    max_steps: Annotated[int, Bounds(least=0)] = 0
    micro_batch: Annotated[int, Bounds(least=0)] = 0

    def __post_init__(self) -> None:
        require_checked(self)

    def overridden(self, overrides: Mapping[str, Any]) -> TrainingSettings:
        """Return these settings with ``overrides`` in place.

        Raises:
            ConfigError: an unknown key or a value that is not allowed, by name.
        """
        try:
            return build(TrainingSettings, {**asdict(self), **overrides})
        except FieldError as error:
            raise ConfigError(
                f"training setting {error.field}: {error.reason} "
                f"(got {overrides.get(error.field)!r}); "
                f"the settings are: {', '.join(each.name for each in fields(self))}"
            ) from error


def snake_case(class_name: str) -> str:
    """Return ``MyTask`` as ``my_task``: the default name of a task."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", class_name).lower()


@dataclass(frozen=True)
class Device:
    """The device that a task gives data to.

    Attributes:
        index: this device's place among the ``count`` devices of the run, from 0.
        role: a trainer learns from its data, an evaluator holds data that no trainer sees.
        seed: the same for all devices of a site, so that they can deal out one data set.
        profile: ``gpu``, ``cpu`` or ``pi``.
        folder: where the device's own data lies, if anywhere.
        data: what the device's settings say of the task's data; see ``dataset``.
    """

    id: str
    index: int = 0
    count: int = 1
    role: Role = "trainer"
    seed: int = 0
    profile: str = "cpu"
    folder: Path | None = None
    data: DataPlace | None = None

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 <= self.index < self.count:
            raise ConfigError(
                f"device {self.id}: index {self.index} is not within 0..{self.count - 1}"
            )

    def dataset(self) -> Dataset:
        """Return the task's data that this device gathers itself (``[data.<task>]``).

        Raises:
            ConfigError: the device's settings say nothing of them.
        """
        from fl_client.datasets.dataset import Dataset  # noqa: PLC0415  needs numpy

        if self.data is None:
            raise ConfigError(
                f"device {self.id} has no data of its own: its settings need a section [data.TASK]"
            )
        return Dataset(self.data)


class Task:
    """A learning task; a subclass gives ``model`` and ``data``, and overrides what else it must.

    ``name`` is the class's name in snake case unless the subclass sets it. A task whose model is
    a list of layers, and which overrides none of the methods marked torch only, runs on every
    engine.
    """

    name: ClassVar[str] = "task"
    objective: ClassVar[Objective] = "cross_entropy"
    training: ClassVar[TrainingSettings] = TrainingSettings()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in vars(cls):
            cls.name = snake_case(cls.__name__)

    def model(self) -> Layers | torch.nn.Module:
        """Return the model: a list of layers (any engine) or a torch module."""
        raise ConfigError(f"task {self.name} does not define model()")

    def data(self, device: Device) -> tuple[Split, Split]:
        """Return the device's training split and its held-out split.

        Called once per process, and for every job where the device gathers the data itself.
        """
        raise ConfigError(f"task {self.name} does not define data(device)")

    def samples(self, device: Device) -> Iterable[Mapping[str, Any]]:
        """Yield what the device's sensor gives, for ever, one record a sample.

        Runs in a process of its own beside the agent where the settings name a ``sensor`` source.
        """
        raise ConfigError(f"task {self.name} does not define samples(device)")

    def initial_weights(self, seed: int) -> Weights:
        """Return version 0 of the global model, the same for the same ``seed``."""
        from fl_client.models import layers  # noqa: PLC0415  needs numpy, see the module

        model = self.model()
        if layers.is_declarative(model):
            return layers.initial_weights(model, seed)  # type: ignore[arg-type]
        from fl_client.engines import torch as torch_engine  # noqa: PLC0415  needs torch

        return torch_engine.initial_weights(self, seed)

    def metrics(self, outputs: NDArray[Any], targets: NDArray[Any]) -> dict[str, float]:
        """Return means over a batch of numpy outputs and targets, beside the loss."""
        if self.objective == "cross_entropy":
            return {"accuracy": float((outputs.argmax(1) == targets).mean())}
        return {}

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of a batch (overriding it: torch only)."""
        from torch.nn import functional  # noqa: PLC0415  only the torch engine comes here

        if self.objective == "cross_entropy":
            return functional.cross_entropy(outputs, targets)
        return functional.mse_loss(outputs, targets)

    def predict(self, model: torch.nn.Module, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the outputs and the targets of a batch (overriding it: torch only)."""
        inputs, targets = batch
        return model(inputs), targets

    def training_step(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        """Return the loss to differentiate (overriding it: torch only)."""
        return self.loss(*self.predict(model, batch))

    def optimizer(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer | None:
        """Return the local optimiser, None for the engine's own SGD (overriding it: torch only)."""
        del parameters
        return None

    def local_update(
        self, weights: Vector, context: LocalContext
    ) -> LocalUpdate | tuple[Vector, int, dict[str, float]]:
        """Return this device's part of a round; override it to replace local training whole.

        An override needs neither ``model`` nor ``data`` nor an engine, and none is loaded.

        Args:
            weights: the global weights as a flat float32 vector, read-only.
            context: the device, the round, the settings, the algorithm and its state, a seed.

        Returns:
            The vector to send (a change of the weights or the weights, as the algorithm's ``kind``
            says), the number of examples, and metrics.
        """
        del weights
        return context.train()

    def evaluate(
        self, weights: Vector, context: LocalContext
    ) -> Evaluation | tuple[int, dict[str, float]]:
        """Return the number of held-out examples and the metrics on them; override as above."""
        del weights
        return context.evaluate()
