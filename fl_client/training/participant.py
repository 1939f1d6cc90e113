"""A device's task, data and engine, each loaded when it is first needed."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from copy import copy
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from algorithms.base import UPDATE
from fl_client.datasets.device import Device
from fl_client.engines.base import Dtype, Engine, TrainingFailed, Tuning, load_engine
from fl_client.models.local_round import Evaluation, LocalRound, LocalUpdate
from fl_client.tasks.base import Task
from fl_client.tasks.context import LocalContext
from fl_client.tasks.exchange import (
    ExchangeAnswer,
    ExchangeContext,
    ExchangeStep,
    checked_answer,
)
from fl_client.tasks.narrow import narrow_task
from fl_client.tasks.user_code import numbers_of, splits_of, wrong
from fl_client.training.transforming import transformed, without_transforms
from runtime.bounds import (
    MAX_EXAMPLES,
    MAX_FINITE,
    MAX_METRIC_NAME,
    MAX_METRICS,
    is_encodable,
    is_plausible,
)
from runtime.errors import ConfigError, RengoError
from storage.updates.info import MAX_SECTIONS
from storage.weights.layout import TensorSpec, dtype_name, require_valid
from storage.weights.model import copy_as_float32

if TYPE_CHECKING:
    from fl_client.tasks.split import Split
    from storage.weights import Array, Vector, Weights

PERSONAL = "personal_"
# the vector, the number of examples, the metrics and the state
_OWN_FIELDS = 4
_LOG = logging.getLogger(__name__)
# floats, whole numbers and truth values, as numpy calls their kinds
_REAL = "fiub"
_NAME = re.compile(r"[a-z0-9_-]{1,64}")


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
        self._exchanged: tuple[str, int, int] | None = None
        self._narrow: tuple[str, Engine] | None = None

    @cached_property
    def engine(self) -> Engine:
        """The engine; imports torch only where it is the torch engine."""
        return self._load_engine(self.task)

    def _load_engine(self, task: Task) -> Engine:
        engine = load_engine(
            self.engine_name,
            task,
            profile=self.device.profile,
            dtype=self._dtype,
            tuning=self._tuning,
        )
        if self._owns_process:
            engine.own_process()
        return engine

    @cached_property
    def _splits(self) -> tuple[Split, Split]:
        return splits_of(self.task, self.device)

    @property
    def train_split(self) -> Split:
        """The data to learn from; ConfigError when the device has none."""
        return self._present(self._splits[0], "training")

    @property
    def held_out_split(self) -> Split:
        """The data to evaluate on; ConfigError when the device has none."""
        return self._present(self._splits[1], "held-out")

    def of_client(self, device: Device, splits: tuple[Split, Split]) -> Participant:
        """Return the participant of another device in this process, on the same task and engine.

        Args:
            splits: what the task gives that device.
        """
        other = copy(self)
        other.device = device
        other.__dict__.update(engine=self.engine, _splits=splits)
        return other

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
        context = LocalContext(self, weights, without_transforms(plan))
        update = self._update(self.task.local_update(_read_only(weights.vector), context))
        for vector in _vectors_of(update):
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
        update = transformed(update, plan)
        # the sum of finite float32 values is finite in float64, and it takes no second vector
        sums = [vector.sum(dtype=np.float64) for vector in _vectors_of(update)]
        if not all(np.isfinite([*sums, *map(np.float32, update.scalars.values())])):
            raise TrainingFailed("training diverged: the update is not finite")
        metrics = self._metrics("local_update", update.metrics)
        return update._replace(metrics=metrics, state=self._state("local_update", update.state))

    def _update(self, given: Any) -> LocalUpdate:
        """Return what ``local_update`` gave, with its types checked."""
        rule = "it must return the vector to send, the number of examples, and metrics"
        # what an algorithm sends beside the update comes from an engine alone
        whole = isinstance(given, LocalUpdate)
        if not whole and not (isinstance(given, tuple | list) and 3 <= len(given) <= _OWN_FIELDS):
            raise wrong(self.task, "local_update", f"gave a {type(given).__name__}: {rule}")
        update = LocalUpdate(*given)
        if not isinstance(update.num_examples, int | np.integer):
            found = type(update.num_examples).__name__
            raise wrong(self.task, "local_update", f"gave a {found} for num_examples: {rule}")
        if update.vector is None and not update.vectors:
            raise wrong(self.task, "local_update", f"gave no vector: {rule}")
        self._require_names(update)
        return update._replace(
            vector=None if update.vector is None else self._vector(update.vector, rule),
            vectors={name: self._vector(each, rule) for name, each in update.vectors.items()},
            scalars=numbers_of(self.task, "local_update", update.scalars),
            num_examples=int(update.num_examples),
        )

    def _require_names(self, update: LocalUpdate) -> None:
        """Raise where further vectors and scalars have names that an update's file cannot have."""
        rule = (
            f"its vectors and scalars are dicts, together of fewer than {MAX_SECTIONS} names, each "
            f"of 1 to 64 of a-z, 0-9, _ and -, given once, and not {UPDATE!r}"
        )
        for given in (update.vectors, update.scalars):
            if not isinstance(given, Mapping):
                found = type(given).__name__
                raise wrong(self.task, "local_update", f"gave a {found} beside its vector: {rule}")
        names = [*update.vectors, *update.scalars]
        named = {each for each in names if isinstance(each, str) and _NAME.fullmatch(each)}
        if len(named - {UPDATE}) < len(names) or len(names) >= MAX_SECTIONS:
            raise wrong(self.task, "local_update", f"gave {names!r:.200}: {rule}")

    def _vector(self, given: Any, rule: str) -> Vector:
        """Return a vector that ``local_update`` gave, as float32."""
        try:
            vector = np.asarray(given)
            if vector.dtype.kind not in _REAL:
                # numpy would make numbers of texts and dates, and drop the imaginary part
                raise TypeError(f"they are of type {vector.dtype}")
        except (TypeError, ValueError) as error:
            what = f"gave no vector of numbers ({error}): {rule}"
            raise wrong(self.task, "local_update", what) from error
        return np.ascontiguousarray(vector, np.float32)

    def evaluate(self, weights: Weights, plan: LocalRound) -> Evaluation:
        """Return the metrics of ``weights`` on this device's held-out data."""
        self.renew()
        plan = without_transforms(plan)
        context = LocalContext(self, weights, plan)
        given: Any = self.task.evaluate(_read_only(weights.vector), context)
        rule = "it must return the number of held-out examples, and metrics"
        if not isinstance(given, tuple | list) or len(given) != len(Evaluation._fields):
            raise wrong(self.task, "evaluate", f"gave a {type(given).__name__}: {rule}")
        if not isinstance(given[0], int | np.integer):
            raise wrong(self.task, "evaluate", f"gave a {type(given[0]).__name__} first: {rule}")
        metrics = numbers_of(self.task, "evaluate", given[1]) | self._personal(weights, plan)
        return Evaluation(int(given[0]), self._metrics("evaluate", metrics))

    def _personal(self, weights: Weights, plan: LocalRound) -> dict[str, float]:
        """Return the metrics of what the device predicts with, where that is a model of its own."""
        is_default = type(self.task).evaluate is Task.evaluate
        if not is_default or not plan.algorithm.is_personal or self._splits[0] is None:
            return {}
        own = self.engine.personal(weights, self.train_split, plan)
        if own is None:
            return {}
        found = self.engine.evaluate(own, self.held_out_split)
        return {f"{PERSONAL}{name}": value for name, value in found.metrics.items()}

    def exchange(self, step: ExchangeStep) -> ExchangeAnswer:
        """Return the task's answer to one message of a flow.

        Data that the device gathers itself are the same in all messages of an attempt of a round.

        Raises:
            ConfigError: the task takes part in no exchange, or gave something else than an answer.
        """
        series = (step.run_id, step.round, step.attempt)
        if series != self._exchanged:
            self.renew()
            self._exchanged = series
        context = ExchangeContext(self, step)
        answer = checked_answer(self.task.name, self.task.exchange(context), context)
        metrics, state = self._metrics("exchange", answer.metrics), answer.state
        return answer._replace(metrics=metrics, state=self._state("exchange", state))

    def train_on_engine(self, weights: Weights, plan: LocalRound) -> LocalUpdate:
        """Return the engine's update, on the device's training data."""
        return self._engine_for(weights, plan).train(weights, self.train_split, plan)

    def _engine_for(self, weights: Weights, plan: LocalRound) -> Engine:
        """Return the engine, that of a narrower model where a part of the model is trained."""
        if plan.width >= 1:
            return self.engine
        if self._narrow is None or self._narrow[0] != weights.layout.hash:
            shapes = {spec.name: spec.shape for spec in weights.layout.tensors}
            task = narrow_task(self.task, plan.width, shapes)
            self._narrow = (weights.layout.hash, self._load_engine(task))
        return self._narrow[1]

    def evaluate_on_engine(self, weights: Weights) -> Evaluation:
        """Return the engine's metrics of ``weights`` on the device's held-out data."""
        return self.engine.evaluate(weights, self.held_out_split)

    def _metrics(self, method: str, given: Any) -> dict[str, float]:
        """Return the metrics that a message can hold, without those that are out of bounds."""
        numbers = numbers_of(self.task, method, given)
        names = list(numbers)
        if len(names) > MAX_METRICS or not all(map(_is_metric_name, names)):
            raise wrong(
                self.task,
                method,
                f"gave {len(names)} metrics: a task reports at most {MAX_METRICS} metrics, with "
                f"names of 1 to {MAX_METRIC_NAME} characters; they are {', '.join(names)[:200]!r}",
            )
        found = {name: value for name, value in numbers.items() if is_plausible(value)}
        for name in numbers.keys() - found.keys():
            value = numbers[name]
            _LOG.warning("metric %s is %s, not within ±%g: left out", name, value, MAX_FINITE)
        return found

    def _state(self, method: str, given: Any) -> dict[str, Array]:
        """Return what a task keeps for its run, as arrays that a file of weights can hold."""
        rule = "what a run keeps on a device is a dict of arrays of numbers by name"
        if not isinstance(given, Mapping):
            raise wrong(self.task, method, f"gave a {type(given).__name__} as its state: {rule}")
        kept: dict[str, Array] = {}
        for name, value in given.items():
            try:
                array = np.asarray(value)
                require_valid(TensorSpec(name, array.shape, dtype_name(name, array.dtype)))
                if array.dtype == np.float64:  # it is kept as float32
                    copy_as_float32(np.empty(array.size, np.float32), array.reshape(-1), name)
            except (TypeError, ValueError, RengoError) as error:
                what = f"gave {name!r:.80} in its state, which cannot be kept ({error}): {rule}"
                raise wrong(self.task, method, what) from error
            kept[name] = array
        return kept

    def _present(self, split: Split, what: str) -> Split:
        if split is None:
            raise ConfigError(
                f"task {self.task.name} gives no {what} data to the {self.device.role} "
                f"{self.device.id}"
            )
        return split


def _vectors_of(update: LocalUpdate) -> list[Vector]:
    return [*update.vectors.values(), *([] if update.vector is None else [update.vector])]


def _read_only(vector: Vector) -> Vector:
    view = vector.view()
    view.flags.writeable = False
    return view


def _is_metric_name(name: str) -> bool:
    return 0 < len(name) <= MAX_METRIC_NAME and is_encodable(name)
