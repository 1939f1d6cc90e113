"""The data plane's shell: byte work on threads of its own; every job ends as an event.

Verification runs on a small pool; folding, aggregating and sweeping on one thread, in order. A
store that cannot be reached costs time: jobs try again until it is back or the server stops.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import tenacity

from algorithms.registry import load as load_algorithm
from fl_server.aggregation.exact import FixedPoint
from fl_server.aggregation.spool import MemoryBudget
from fl_server.aggregation.streaming import Refused, RunAggregator, Submission
from fl_server.events import (
    Aggregate,
    AggregationFailed,
    AggregationFinished,
    DiscardUpdate,
    Event,
    FoldUpdate,
    Model,
    SweepRound,
    SweepRun,
    UpdateRejected,
    UpdateVanished,
    UpdateVerified,
    VerifyUpdate,
)
from fl_server.journal import RunRecord
from fl_server.models import ModelCache
from runtime.errors import RengoError, Unavailable
from storage.keys import RunKeys
from storage.objects import ObjectStore

_LOG = logging.getLogger(__name__)
T = TypeVar("T")

_VERIFIERS = 4
_LONGEST_PAUSE_S = 5.0


@dataclass(frozen=True)
class JobDone:
    """A job of a run ended with an event for its machine."""

    run_id: str
    event: Event


@dataclass(frozen=True)
class TaskDone:
    """A task outside any machine ended; ``then`` continues it on the owner's thread."""

    then: Callable[[], None]


@dataclass(frozen=True)
class JobCrashed:
    """A job ended with an error that nobody foresaw: our bug, or this machine's trouble."""

    run_id: str
    error: BaseException


Done: TypeAlias = JobDone | TaskDone | JobCrashed
DataCommand: TypeAlias = (
    VerifyUpdate | FoldUpdate | Aggregate | DiscardUpdate | SweepRound | SweepRun
)


class DataPlane:
    """The byte work of all runs.

    Args:
        store: the object store.
        folder: where spools and local copies lie; only this process uses it.
        post: takes what ended; called on the jobs' threads, only enqueues.
        spool_memory_bytes: the bound on verified updates held in memory.
    """

    def __init__(
        self,
        store: ObjectStore,
        folder: Path,
        project: str,
        post: Callable[[Done], None],
        spool_memory_bytes: int = 64 << 20,
    ) -> None:
        self.store = store
        self.project = project
        self._folder = folder
        self._post = post
        self._budget = MemoryBudget(spool_memory_bytes)
        self._runs: dict[str, RunAggregator] = {}
        self._stopping = threading.Event()
        self._verifiers = ThreadPoolExecutor(_VERIFIERS, "verify")
        self._aggregator = ThreadPoolExecutor(1, "aggregate")

    def keys(self, run_id: str) -> RunKeys:
        """Return the keys of a run."""
        return RunKeys(self.project, run_id)

    def open_run(self, record: RunRecord) -> None:
        """Get ready for a run's commands."""
        definition = record.definition
        self._runs[record.run_id] = RunAggregator(
            self.keys(record.run_id),
            load_algorithm(definition.algorithm.name, definition.algorithm.settings),
            FixedPoint(definition.aggregation.scale_bits, definition.aggregation.weight_bits),
            record.plan.cohort_size,
            definition.models.keep,
            self.store,
            ModelCache(self._folder / record.run_id, self.store),
            self._budget,
        )

    def stop(self) -> None:
        """Let running jobs end without retries and drop the others."""
        self._stopping.set()
        self._verifiers.shutdown(cancel_futures=True)
        self._aggregator.shutdown(cancel_futures=True)

    # --- a run's commands ---------------------------------------------------------------------

    def carry_out(
        self,
        run_id: str,
        command: DataCommand,
        model: Model,
    ) -> None:
        """Start the job of a command; ``model`` is the latest committed version."""
        run = self._runs[run_id]
        pool = self._verifiers if isinstance(command, VerifyUpdate) else self._aggregator
        future = pool.submit(self._do, run, command, model)
        future.add_done_callback(lambda done: self._ended(run_id, done))

    def _do(self, run: RunAggregator, command: DataCommand, model: Model) -> Event | None:
        match command:
            case VerifyUpdate():
                return self._verify(run, command, model)
            case FoldUpdate():
                return self._fold(run, command, model)
            case Aggregate():
                return self._aggregate(run, command, model)
            case DiscardUpdate():
                self.patiently(lambda: self.store.delete([command.key]))
            case SweepRound():
                key = (command.round, command.attempt)
                self.patiently(lambda: run.sweep(key, model))
            case SweepRun():
                self.patiently(lambda: run.sweep_run(model))
        return None

    def _ended(self, run_id: str, future: Future[Any]) -> None:
        if future.cancelled() or self._stopping.is_set():
            return
        error = future.exception()
        if error is not None:
            self._post(JobCrashed(run_id, error))
            return
        event = future.result()
        if event is not None:
            self._post(JobDone(run_id, event))

    def _verify(self, run: RunAggregator, command: VerifyUpdate, model: Model) -> Event:
        submission = _submission(command)
        parts = (command.device_id, command.round, command.attempt, command.update)
        try:
            self.patiently(lambda: run.verify(submission, model))
        except Refused as error:
            return UpdateRejected(*parts, str(error))
        return UpdateVerified(*parts)

    def _fold(self, run: RunAggregator, command: FoldUpdate, model: Model) -> Event | None:
        submission = _submission(command)
        try:
            self.patiently(lambda: run.fold(submission, model))
        except Refused as error:
            return UpdateVanished(command.device_id, command.round, command.attempt, str(error))
        return None

    def _aggregate(self, run: RunAggregator, command: Aggregate, model: Model) -> Event:
        key = (command.round, command.attempt)
        try:
            after = self.patiently(lambda: run.aggregate(key, command.included, model))
        except Unavailable:
            raise
        except RengoError as error:
            return AggregationFailed(*key, str(error))
        return AggregationFinished(*key, after)

    # --- tasks outside the machines -----------------------------------------------------------

    def start_task(
        self, work: Callable[[], T], then: Callable[[T], None], failed: Callable[[RengoError], None]
    ) -> None:
        """Do ``work`` on a thread, then call ``then`` or ``failed`` on the owner's thread."""

        def ended(future: Future[T]) -> None:
            if future.cancelled() or self._stopping.is_set():
                return
            error = future.exception()
            if error is None:
                result = future.result()
                self._post(TaskDone(lambda: then(result)))
            elif isinstance(error, RengoError):
                named = error
                self._post(TaskDone(lambda: failed(named)))
            else:
                self._post(JobCrashed("", error))

        self._verifiers.submit(work).add_done_callback(ended)

    def discard(self, key: str) -> None:
        """Delete one object in the background."""
        self._aggregator.submit(
            lambda: self.patiently(lambda: self.store.delete([key]))
        ).add_done_callback(lambda done: self._ended("", done))

    def patiently(self, work: Callable[[], T]) -> T:
        """Call ``work`` until the store answers; only stopping ends the patience."""
        attempts = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type((Unavailable, OSError)),
            stop=tenacity.stop_when_event_set(self._stopping),
            wait=tenacity.wait_random_exponential(multiplier=0.1, max=_LONGEST_PAUSE_S),
            sleep=tenacity.sleep_using_event(self._stopping),
            before_sleep=_say_waiting,
            reraise=True,
        )
        return attempts(work)


def _say_waiting(state: tenacity.RetryCallState) -> None:
    error = None if state.outcome is None else state.outcome.exception()
    _LOG.warning("waiting for the store or the disk: %s", error)


def _submission(command: VerifyUpdate | FoldUpdate) -> Submission:
    return Submission(command.device_id, command.round, command.attempt, command.update)
