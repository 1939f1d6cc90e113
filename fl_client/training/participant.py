"""A device's part in a run: its task, its data and its engine, each loaded when first needed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from fl_client.engines.base import (
    Dtype,
    Engine,
    Evaluation,
    LocalRound,
    LocalUpdate,
    TrainingFailed,
    Tuning,
    load_engine,
)
from fl_client.tasks.base import Device, Task
from runtime.errors import ConfigError
from storage.updates.info import MAX_EXAMPLES

if TYPE_CHECKING:
    from fl_client.tasks.base import Split
    from storage.weights import Vector, Weights


class Participant:
    """One device's task, data and engine, kept from round to round; never shared by threads.

    Args:
        owns_process: whether the engine may set up the whole process (threads, determinism).
    """

    def __init__(
        self,
        task: Task,
        device: Device,
        engine_name: str,
        *,
        dtype: Dtype = "float32",
        owns_process: bool = False,
        tuning: Tuning | None = None,
    ) -> None:
        self.task = task
        self.device = device
        self.engine_name = engine_name
        self._dtype: Dtype = dtype
        self._owns_process = owns_process
        self._tuning = tuning

    @cached_property
    def engine(self) -> Engine:
        """The engine; imports torch only where it is the torch engine."""
        engine = load_engine(
            self.engine_name,
            self.task,
            profile=self.device.profile,
            dtype=self._dtype,
            tuning=self._tuning,
        )
        if self._owns_process:
            engine.own_process()
        return engine

    @cached_property
    def _splits(self) -> tuple[Split, Split]:
        train, held_out = self.task.data(self.device)
        return train, held_out

    @property
    def train_split(self) -> Split:
        """The data to learn from; ConfigError when the device has none."""
        return self._present(self._splits[0], "training")

    @property
    def held_out_split(self) -> Split:
        """The data to evaluate on; ConfigError when the device has none."""
        return self._present(self._splits[1], "held-out")

    def renew(self) -> None:
        """Read the data anew at the next need, where the device gathers them itself."""
        if self.device.data is not None:
            self.__dict__.pop("_splits", None)

    def train(self, weights: Weights, plan: LocalRound) -> LocalUpdate:
        """Return this device's update of one round.

        Raises:
            ConfigError: the task cannot train here, or gave a malformed update.
            TrainingFailed: the update is not finite, or of more examples than may be reported.
        """
        self.renew()
        context = LocalContext(self, weights, plan)
        update = LocalUpdate(*self.task.local_update(_read_only(weights.vector), context))
        vector = np.ascontiguousarray(update.vector, np.float32)
        if vector.shape != weights.vector.shape:
            raise ConfigError(
                f"task {self.task.name}: local_update gave a vector of shape {vector.shape}, "
                f"the model has {weights.vector.shape}"
            )
        if update.num_examples < 1:
            raise ConfigError(f"task {self.task.name}: local_update saw no examples")
        if update.num_examples > MAX_EXAMPLES:
            raise TrainingFailed(
                f"the update is of {update.num_examples} examples, more than the {MAX_EXAMPLES} "
                "that one device may report"
            )
        # the sum of finite float32 values is finite in float64, and it takes no second vector
        if not np.isfinite(vector.sum(dtype=np.float64)):
            raise TrainingFailed("training diverged: the update is not finite")
        return update._replace(vector=vector, metrics=_finite(update.metrics))

    def evaluate(self, weights: Weights, plan: LocalRound) -> Evaluation:
        """Return the metrics of ``weights`` on this device's held-out data."""
        self.renew()
        context = LocalContext(self, weights, plan)
        found = Evaluation(*self.task.evaluate(_read_only(weights.vector), context))
        return found._replace(metrics=_finite(found.metrics))

    def _present(self, split: Split, what: str) -> Split:
        if split is None:
            raise ConfigError(
                f"task {self.task.name} gives no {what} data to the {self.device.role} "
                f"{self.device.id}"
            )
        return split


@dataclass(frozen=True)
class LocalContext:
    """What local training knows: the participant, the global model and the round."""

    participant: Participant
    weights: Weights
    round: LocalRound

    @property
    def device(self) -> Device:
        """The device that trains."""
        return self.participant.device

    def own_weights(self) -> Vector:
        """Return the global weights to be overwritten: an update that takes no second vector.

        They are the memory that ``local_update`` was given: what is overwritten is gone from there.
        """
        return self.weights.vector

    def random(self) -> np.random.Generator:
        """Return random numbers that are this device's in this round, the same every time."""
        return np.random.default_rng(self.round.local_seed)

    def train(self) -> LocalUpdate:
        """Train with the engine on the device's training data."""
        owner = self.participant
        return owner.engine.train(self.weights, owner.train_split, self.round)

    def evaluate(self) -> Evaluation:
        """Evaluate with the engine on the device's held-out data."""
        owner = self.participant
        return owner.engine.evaluate(self.weights, owner.held_out_split)


def _read_only(vector: Vector) -> Vector:
    view = vector.view()
    view.flags.writeable = False
    return view


def _finite(metrics: dict[str, float]) -> dict[str, float]:
    """Return the metrics that are numbers: a loss of infinity has no place in a message."""
    return {name: float(value) for name, value in metrics.items() if np.isfinite(value)}
