"""The data plane: the work on bytes, of runs in rounds and of runs that begin.

Methods that block, as their docstrings say, are called on the threads of :class:`Workers`:
verification on the pool; folding, aggregating and sweeping of a run in order.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

from algorithms.registry import load as load_algorithm
from broker.wire.messages import PartsRef
from fl_server.aggregation.aggregator import (
    AggregatedRun,
    Refused,
    RoundKey,
    RunAggregator,
    SubmittedUpdate,
)
from fl_server.aggregation.base_models import BaseLost
from fl_server.aggregation.partial import SumUp
from fl_server.aggregation.spool import MemoryBudget
from fl_server.dataplane.initial_models import InitialModels
from fl_server.dataplane.workers import Done
from fl_server.flows.events import FailureReported
from fl_server.rounds.commands import (
    Aggregate,
    DiscardUpdate,
    FoldUpdate,
    SweepRound,
    SweepRun,
    VerifyUpdate,
)
from fl_server.rounds.events import (
    AggregationFailed,
    AggregationFinished,
    Event,
    PartStored,
    UpdateRejected,
    UpdateVanished,
    UpdateVerified,
)
from fl_server.rounds.model import Model, Update
from fl_server.rounds.plan import Plan
from fl_server.runs.lineage import Commit, manifest_of
from fl_server.runs.record import RunRecord
from runtime.errors import (
    AccessDenied,
    ConfigError,
    Damaged,
    NotFound,
    RengoError,
    Unavailable,
)
from storage.registry.registry import ModelRegistry
from storage.store.objects import ObjectStore, abort_uploads
from storage.versions.keys import best_label
from storage.weights import NotFinite

_LOG = logging.getLogger(__name__)
# a sweep covers all rounds before it, so that short ones share it
_SWEEP_EVERY_S = 2.0
_LOOK_EVERY_S = 0.5

DataCommand: TypeAlias = (
    VerifyUpdate | FoldUpdate | Aggregate | DiscardUpdate | SweepRound | SweepRun
)


@dataclass
class RunRetention:
    """Which of a run's versions stay: by the run's policy, and by their tags and stages.

    Attributes:
        held: versions that stay besides, as the run's flow said last.
    """

    registry: ModelRegistry
    run_id: str
    keep: int
    keep_every: int
    held: frozenset[int] = frozenset()

    def retained(self, latest: int) -> set[int]:
        """See :class:`fl_server.aggregation.aggregator.Retention`."""
        kept = self.registry.retained(self.run_id, latest, self.keep, self.keep_every)
        return kept | self.held

    def forget_others(self, retained: Collection[int]) -> None:
        """See :class:`fl_server.aggregation.aggregator.Retention`."""
        self.registry.forget_others(self.run_id, retained)

    def unchanged(self) -> AbstractContextManager[None]:
        """See :class:`fl_server.aggregation.aggregator.Retention`."""
        return self.registry.unchanged()


class DataPlane(InitialModels):
    """The byte work of all runs.

    Args:
        store: the object store.
        registry: the project's versions, in the same store.
        folder: where spools and local copies lie; only this process uses it.
        post: accepts what ended; called on the workers' threads, only enqueues.
        spool_memory_bytes: the bound on verified updates held in memory.
        report_name: returns what the reports of a run's sums call a device.
    """

    def __init__(
        self,
        store: ObjectStore,
        registry: ModelRegistry,
        folder: Path,
        post: Callable[[Done], None],
        spool_memory_bytes: int = 64 << 20,
        report_name: Callable[[str, str], str] = lambda _, device_id: device_id,
    ) -> None:
        super().__init__(store, registry, folder, post)
        self._report_name = report_name
        self._budget = MemoryBudget(spool_memory_bytes)
        self._runs: dict[str, RunAggregator] = {}
        self._retention: dict[str, RunRetention] = {}
        self._swept_s: dict[str, float] = {}

    def open_run(self, record: RunRecord[Plan]) -> None:
        """Get ready for a run's commands; one that is opened anew keeps what it has added up."""
        if record.run_id in self._runs:
            return
        definition = record.definition
        models = definition.models
        retention = RunRetention(self.registry, record.run_id, models.keep, models.keep_every)
        self._retention[record.run_id] = retention
        self._runs[record.run_id] = RunAggregator(
            AggregatedRun(
                self.keys(record.run_id),
                load_algorithm(definition.algorithm.name, definition.algorithm.settings),
                definition.seed,
                record.plan.cohort_size,
                definition.composition.rule,
                definition.composition.transforms,
                partial(self._report_name, record.run_id) if record.plan.sums else str,
            ),
            retention,
            self.store,
            self._models_of(record.run_id),
            self._budget,
        )

    def close_run(self, run_id: str) -> None:
        """Hold nothing more of a run that has ended."""
        self._runs.pop(run_id, None)
        self._retention.pop(run_id, None)

    # --- a run's commands ---------------------------------------------------------------------

    def read_registry(self) -> None:
        """Rebuild the registry from the store, before anything else is done with it."""

        def work() -> None:
            for line in self.registry.rebuild():
                _LOG.warning("model registry: %s", line)

        self.in_order(work)

    def sign_version(self, record: RunRecord[Plan], commit: Commit, *, is_new: bool = True) -> None:
        """Sign a committed version's manifest and store it. Blocks.

        Args:
            is_new: False where the version may be older than this process: the registry may have
                it, or its model may have been removed.
        """
        run, model = self._runs[record.run_id], commit.model
        self._await_registry()

        def work() -> None:
            if not is_new and not self._lacks_manifest(record.run_id, model):
                return
            manifest = manifest_of(
                record,
                commit,
                project=self.registry.project,
                layout_hash=run.base.layout(model).hash,
                created_ms=time.time_ns() // 1_000_000,
            )
            self.registry.commit(manifest)

        try:
            self.patiently(work, record.run_id)
        except Damaged as error:
            _LOG.error("version %d of %s has no manifest: %s", model.version, record.run_id, error)

    def _await_registry(self) -> None:
        """Return when the registry has been read. Blocks."""
        while not self.registry.wait_read(_LOOK_EVERY_S):
            if self._stopping.is_set():
                raise Unavailable("the server stops")

    def _lacks_manifest(self, run_id: str, model: Model) -> bool:
        if self.registry.has(run_id, model.version):
            return False
        try:
            self.store.head(model.key)
        except NotFound:
            return False
        return True

    def store_metrics(self, run_id: str, metrics: Mapping[int, Mapping[str, float]]) -> None:
        """Store the metrics of the run's versions that are still there. Blocks."""

        def work() -> None:
            for version in self.registry.versions(run_id):
                found = metrics.get(version.manifest.version)
                if found:
                    self.registry.measure(run_id, version.manifest.version, found)

        self._await_registry()
        try:
            self.patiently(work, run_id)
        except (Damaged, NotFound) as error:
            _LOG.error("the metrics of %s are not all stored: %s", run_id, error)

    def tag_best(self, run_id: str, version: int) -> None:
        """Give a version the tag of its run's best. Blocks."""
        self._await_registry()
        try:
            self.patiently(
                lambda: self.registry.tag(self.registry.get(run_id, version), best_label(run_id)),
                run_id,
            )
        except (Damaged, NotFound, ConfigError) as error:
            _LOG.error("version %d of %s, its best, has no tag: %s", version, run_id, error)

    def store_part(self, run_id: str, base: Model, width: float) -> PartStored | None:
        """Store what devices of a width train from a version in the next round. Blocks.

        Raises:
            ConfigError: the algorithm cannot divide the model.
            Damaged: the version is lost, or not what was committed.
        """
        run = self._runs.get(run_id)
        if run is None:
            return None  # it has ended meanwhile, and nothing waits for it
        part = self.patiently(lambda: run.store_part(base, width), run_id)
        return PartStored(base.sha256, width, part)

    def perform(
        self,
        run_id: str,
        command: DataCommand,
        model: Model,
        held: frozenset[int] = frozenset(),
    ) -> Event | None:
        """Carry out a command of a run and return the event that follows, if any. Blocks.

        Args:
            model: the latest committed version.
            held: the versions that no sweep removes.
        """
        if isinstance(command, DiscardUpdate):
            with _logged(run_id):
                self.patiently(lambda: self.store.delete([command.key]), run_id)
            return None
        run = self._runs.get(run_id)
        if run is None:
            return None  # it has ended meanwhile, and nothing waits for it
        try:
            match command:
                case VerifyUpdate():
                    return self._verify(run, command, model)
                case FoldUpdate():
                    return self._fold(run, command, model)
                case Aggregate():
                    return self._aggregate(run, command, model)
            with _logged(run_id):
                self._clean(run, command, model, held)
        except BaseLost as error:
            return FailureReported(f"version {model.version} is lost: {error}")
        return None

    def _clean(
        self,
        run: RunAggregator,
        command: SweepRound | SweepRun,
        model: Model,
        held: frozenset[int],
    ) -> None:
        """Remove what no longer serves."""
        self._retention[run.keys.run_id].held = held
        if isinstance(command, SweepRound):
            self._sweep(run, (command.round, command.attempt), model)
            return
        run_id = run.keys.run_id
        self._await_registry()
        self.patiently(lambda: run.sweep_run(model), run_id)
        self.uploads.forget(run.keys)
        self._swept_s.pop(run_id, None)

    def _sweep(self, run: RunAggregator, key: RoundKey, model: Model) -> None:
        """Free what updates up to ``key`` take here, and in the store unless it was just swept.

        What is left there goes with a later round, or at the run's end. After a round without a
        model it is made sure that devices could have fetched the one before.
        """
        run.forget(key)
        run_id = run.keys.run_id
        if model.version < key[0]:
            self.patiently(lambda: run.base.require_stored(model), run_id)
        now_s = time.monotonic()
        if now_s < self._swept_s.get(run_id, -math.inf) + _SWEEP_EVERY_S:
            return
        self._await_registry()
        self._swept_s[run_id] = now_s
        self.patiently(lambda: run.sweep(key, model), run_id)
        if self.uploads.is_large(model.size_bytes):
            self.patiently(lambda: self.uploads.abort_spent(run.keys, *key), run_id)

    def _base_read(self, run: RunAggregator, model: Model) -> None:
        """Return when what the run goes on from is here; raises BaseLost when it never will."""
        try:
            self.patiently(lambda: run.base.layout(model), run.keys.run_id)
        except Damaged as error:
            raise BaseLost(str(error)) from error

    def _verify(self, run: RunAggregator, command: VerifyUpdate, model: Model) -> Event:
        submission = _submission(command)
        parts = (command.device_id, command.round, command.attempt, command.update)
        self._base_read(run, model)
        try:
            self.patiently(lambda: run.verify(submission, model), run.keys.run_id)
        except (Refused, Damaged) as error:
            return UpdateRejected(*parts, str(error))
        return UpdateVerified(*parts)

    def _fold(self, run: RunAggregator, command: FoldUpdate, model: Model) -> Event | None:
        submission = _submission(command)
        self._base_read(run, model)
        try:
            self.patiently(lambda: run.fold(submission, model), run.keys.run_id)
        except (Refused, Damaged) as error:
            return UpdateVanished(command.device_id, command.round, command.attempt, str(error))
        return None

    def sum_up(
        self,
        run_id: str,
        command: Aggregate,
        model: Model,
        metrics: Mapping[str, float],
        singly: Mapping[str, Update] | None = None,
    ) -> Event | None:
        """Put a round's sums into the store in place of a version made of them. Blocks.

        Args:
            metrics: the devices', as means.
            singly: the included updates, where these go to the parent in place of their sum.
        """
        run = self._runs.get(run_id)
        if run is None:
            return None
        key, told = (command.round, command.attempt), SumUp(command.population, metrics)
        try:
            if singly is not None:
                return self._made(
                    run, command, model, lambda: run.pass_on(key, singly, model, told)
                )
            return self._made(
                run, command, model, lambda: run.sum_up(key, command.included, model, told)
            )
        except BaseLost as error:
            return FailureReported(f"version {model.version} is lost: {error}")

    def _aggregate(self, run: RunAggregator, command: Aggregate, model: Model) -> Event:
        key = (command.round, command.attempt)
        return self._made(
            run,
            command,
            model,
            lambda: run.aggregate(key, command.included, model, command.population),
        )

    def _made(
        self, run: RunAggregator, command: Aggregate, model: Model, make: Callable[[], Model]
    ) -> Event:
        """Return the event of what is made of a round's updates."""
        key = (command.round, command.attempt)
        self._base_read(run, model)
        try:
            after = self.patiently(make, run.keys.run_id)
        except (Unavailable, AccessDenied, BaseLost):
            raise
        except (NotFinite, ConfigError) as error:
            # devices would train the same again
            return FailureReported(f"round {command.round}: {error}")
        except RengoError as error:
            return AggregationFailed(*key, str(error))
        return AggregationFinished(*key, after)

    def remove_objects(self, run_id: str) -> None:
        """Leave nothing of a run in the store: it has no versions of its own. Blocks."""
        keys = self.keys(run_id)

        def work() -> None:
            abort_uploads(self.store, keys.prefix)
            self.store.delete([info.key for info in self.store.list(keys.prefix)])

        self.patiently(work, run_id)
        self.uploads.forget(keys)

    # --- uploads in parts ---------------------------------------------------------------------

    def begin_upload(self, key: str, size: int, then: Callable[[PartsRef | None], None]) -> None:
        """Begin an upload in parts or go on with it, then call ``then`` on the owner's thread.

        It is given None when the store refuses: one PUT may do.
        """

        def failed(error: RengoError) -> None:
            _LOG.warning("no upload in parts for %s: %s", key, error)
            then(None)

        def begun(found: PartsRef | AccessDenied) -> None:
            if isinstance(found, AccessDenied):
                failed(found)
            else:
                then(found)

        def begin() -> PartsRef | AccessDenied:
            try:
                return self.uploads.parts_for(key, size)
            except AccessDenied as error:
                return error  # not waited out: a key may lack the right to parts alone

        self.start_upload(begin, begun, failed)

    def abandon_upload(self, key: str) -> None:
        """End an upload in parts in the background, if there is one."""

        def failed(error: RengoError) -> None:
            _LOG.error("the upload for %s cannot be ended: %s", key, error)

        self.start_upload(lambda: self.uploads.abort(key), lambda _: None, failed)


def _submission(command: VerifyUpdate | FoldUpdate) -> SubmittedUpdate:
    place = (command.device_id, command.round, command.attempt)
    return SubmittedUpdate(*place, command.update, command.width)


@contextmanager
def _logged(run_id: str) -> Iterator[None]:
    """Log what cannot be removed because it is damaged: a later sweep tries again."""
    try:
        yield
    except Damaged as error:
        _LOG.warning("not all that %s has left could be removed: %s", run_id, error)
