"""The data plane's shell: byte work on threads of its own; every job ends as an event.

Verification runs on a small pool; folding, aggregating and sweeping on one thread, in order. A
store that cannot be reached costs time: jobs try again until it is back or the server stops.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from algorithms.registry import load as load_algorithm
from broker.wire.messages import PartsRef
from fl_server.aggregation.aggregator import Refused, RoundKey, RunAggregator, SubmittedUpdate
from fl_server.aggregation.model_cache import ModelCache
from fl_server.aggregation.spool import MemoryBudget
from fl_server.dataplane.uploads import Uploads
from fl_server.persistence.journal import PreparedRun, RunRecord
from fl_server.rounds.events import (
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
from fl_server.runs.lineage import Commit, manifest_of
from runtime.errors import ConfigError, Corrupt, NotFound, RengoError, Unavailable
from runtime.retry import retrying_until
from storage.registry.registry import ModelRegistry
from storage.store.objects import ObjectStore
from storage.versions.keys import RunKeys
from storage.weights import read_layout

_LOG = logging.getLogger(__name__)
T = TypeVar("T")

_VERIFIERS = 4
# a sweep covers all rounds before it, so that short ones share it
_SWEEP_EVERY_S = 2.0


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


@dataclass(frozen=True)
class RunRetention:
    """Which of a run's versions stay: by the run's policy, and by their tags and stages."""

    registry: ModelRegistry
    run_id: str
    keep: int
    keep_every: int

    def retained(self, latest: int) -> set[int]:
        """See :class:`fl_server.aggregation.aggregator.Retention`."""
        return self.registry.retained(self.run_id, latest, self.keep, self.keep_every)

    def forget_others(self, retained: Collection[int]) -> None:
        """See :class:`fl_server.aggregation.aggregator.Retention`."""
        self.registry.forget_others(self.run_id, retained)


class DataPlane:
    """The byte work of all runs.

    Args:
        store: the object store.
        registry: the project's versions, in the same store.
        folder: where spools and local copies lie; only this process uses it.
        post: takes what ended; called on the jobs' threads, only enqueues.
        spool_memory_bytes: the bound on verified updates held in memory.
    """

    def __init__(
        self,
        store: ObjectStore,
        registry: ModelRegistry,
        folder: Path,
        post: Callable[[Done], None],
        spool_memory_bytes: int = 64 << 20,
    ) -> None:
        self.store = store
        self.registry = registry
        self._folder = folder
        self._post = post
        self._budget = MemoryBudget(spool_memory_bytes)
        self._runs: dict[str, RunAggregator] = {}
        self._swept_s: dict[str, float] = {}
        self._stopping = threading.Event()
        self._attempts = retrying_until(self._stopping, (Unavailable, OSError), _log_waiting)
        self._verifiers = ThreadPoolExecutor(_VERIFIERS, "verify")
        self._aggregator = ThreadPoolExecutor(1, "aggregate")
        # one thread, so that an order that is asked for twice has one upload
        self._placer = ThreadPoolExecutor(1, "uploads")
        self.uploads = Uploads(store)

    def keys(self, run_id: str) -> RunKeys:
        """Return the keys of a run."""
        return RunKeys(self.registry.project, run_id)

    def open_run(self, record: RunRecord) -> None:
        """Get ready for a run's commands."""
        definition = record.definition
        models = definition.models
        retention = RunRetention(self.registry, record.run_id, models.keep, models.keep_every)
        self._runs[record.run_id] = RunAggregator(
            self.keys(record.run_id),
            load_algorithm(definition.algorithm.name, definition.algorithm.settings),
            record.plan.cohort_size,
            retention,
            self.store,
            self._models_of(record.run_id),
            self._budget,
        )

    def stop(self) -> None:
        """Let running jobs end without retries and drop the others."""
        self._stopping.set()
        self._verifiers.shutdown(cancel_futures=True)
        self._aggregator.shutdown(cancel_futures=True)
        self._placer.shutdown(cancel_futures=True)

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

    def read_registry(self) -> None:
        """Rebuild the registry from the store, before anything else is done with it."""

        def work() -> None:
            for line in self.registry.rebuild():
                _LOG.warning("model registry: %s", line)

        self._in_order("", work)

    def record(self, record: RunRecord, commit: Commit, *, restarted: bool = False) -> None:
        """Sign a committed version's manifest and keep it, before anything that comes later.

        Args:
            restarted: the version may be older than this process: the registry may have it, or its
                model may have been removed.
        """
        run, model = self._runs[record.run_id], commit.model

        def work() -> None:
            if restarted and not self._lacks_manifest(record.run_id, model):
                return
            manifest = manifest_of(
                record,
                commit,
                project=self.registry.project,
                layout_hash=run.layout(model).hash,
                created_ms=time.time_ns() // 1_000_000,
            )
            self.registry.commit(manifest)

        self._in_order(record.run_id, work)

    def _lacks_manifest(self, run_id: str, model: Model) -> bool:
        if self.registry.has(run_id, model.version):
            return False
        try:
            self.store.head(model.key)
        except NotFound:
            return False
        return True

    def measure(self, run_id: str, metrics: Mapping[int, Mapping[str, float]]) -> None:
        """Keep what the run's versions were measured to be, where they are still there."""

        def work() -> None:
            for version in self.registry.versions(run_id):
                found = metrics.get(version.manifest.version)
                if found:
                    self.registry.measure(run_id, version.manifest.version, found)

        self._in_order(run_id, work)

    def _in_order(self, run_id: str, work: Callable[[], None]) -> None:
        """Do ``work`` after all byte work that was begun before, before all that comes later."""
        future = self._aggregator.submit(self.patiently, work)
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
                self._sweep(run, (command.round, command.attempt), model)
            case SweepRun():
                self.patiently(lambda: run.sweep_run(model))
                self.uploads.forget(run.keys)
                self._swept_s.pop(run.keys.run_id, None)
        return None

    def _sweep(self, run: RunAggregator, key: RoundKey, model: Model) -> None:
        """Free what updates up to ``key`` take here, and in the store unless it was just swept.

        What is left there goes with a later round, or at the run's end.
        """
        run.forget(key)
        now_s = time.monotonic()
        if now_s < self._swept_s.get(run.keys.run_id, -math.inf) + _SWEEP_EVERY_S:
            return
        self._swept_s[run.keys.run_id] = now_s
        self.patiently(lambda: run.sweep(key, model))
        if self.uploads.is_large(model.size_bytes):
            self.patiently(lambda: self.uploads.abort_spent(run.keys, *key))

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
        self,
        work: Callable[[], T],
        then: Callable[[T], None],
        failed: Callable[[RengoError], None],
        *,
        in_order: bool = False,
    ) -> None:
        """Do ``work`` on a thread, then call ``then`` or ``failed`` on the owner's thread.

        Args:
            in_order: after all byte work of runs that was begun before, and before all that comes
                later.
        """

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

        pool = self._aggregator if in_order else self._verifiers
        pool.submit(work).add_done_callback(ended)

    def check_initial(self, run_id: str, model: Model) -> None:
        """Return when version 0 is in the store and can be trained; keep a local copy. Blocks.

        Raises:
            NotFound, Corrupt: it is not there, or not what was promised.
            ConfigError: there is nothing in it to train.
        """
        size = self.store.head(model.key).size
        if size != model.size_bytes:
            raise Corrupt(f"{model.key} has {size} bytes, expected {model.size_bytes}")
        models = self._models_of(run_id)
        try:
            with models.fetch(model).open("rb") as file:
                layout, _ = read_layout(file)
            if layout.stored_bytes != size:
                raise Corrupt(f"{model.key} has {size} bytes, its tensors end elsewhere")
            if layout.size == 0:
                raise ConfigError("the model has no float parameters to train")
            self.uploads.abort(model.key)
        except BaseException:
            models.forget()
            raise

    def discard_prepared(self, prepared: PreparedRun) -> None:
        """Leave nothing of a run that nobody submitted."""
        awaited, keys = prepared.awaited, self.keys(prepared.run_id)
        self.discard(awaited.key)
        self._models_of(prepared.run_id).forget()
        if self.uploads.is_large(awaited.size_bytes):
            self._in_order("", lambda: self.uploads.abort_all(keys))

    def _models_of(self, run_id: str) -> ModelCache:
        return ModelCache(self._folder / run_id, self.store)

    def discard(self, key: str) -> None:
        """Delete one object in the background."""
        self._aggregator.submit(
            lambda: self.patiently(lambda: self.store.delete([key]))
        ).add_done_callback(lambda done: self._ended("", done))

    def place_upload(self, key: str, size: int, then: Callable[[PartsRef | None], None]) -> None:
        """Begin an upload in parts or go on with it, then call ``then`` on the owner's thread.

        It is given None when the store refuses: one PUT may do.
        """

        def ended(future: Future[PartsRef]) -> None:
            if future.cancelled() or self._stopping.is_set():
                return
            error = future.exception()
            if error is not None and not isinstance(error, RengoError):
                self._post(JobCrashed("", error))
                return
            if error is not None:
                _LOG.warning("no upload in parts for %s: %s", key, error)
            parts = None if error is not None else future.result()
            self._post(TaskDone(lambda: then(parts)))

        self._placer.submit(
            lambda: self.patiently(lambda: self.uploads.place(key, size))
        ).add_done_callback(ended)

    def abandon_upload(self, key: str) -> None:
        """End an upload in parts in the background, if there is one."""
        self._placer.submit(
            lambda: self.patiently(lambda: self.uploads.abort(key))
        ).add_done_callback(lambda done: self._ended("", done))

    def patiently(self, work: Callable[[], T]) -> T:
        """Call ``work`` until the store answers; only stopping ends the patience."""
        return self._attempts(work)


def _log_waiting(error: BaseException) -> None:
    _LOG.warning("waiting for the store or the disk: %s", error)


def _submission(command: VerifyUpdate | FoldUpdate) -> SubmittedUpdate:
    return SubmittedUpdate(command.device_id, command.round, command.attempt, command.update)
