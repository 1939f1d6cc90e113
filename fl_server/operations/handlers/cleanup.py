"""What an operator can do with objects that nothing needs: remove them from the store."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fl_server.kinds.sync import SyncFlow
from fl_server.members.rules import AuditEvent
from fl_server.operations import catalogue
from fl_server.operations.arguments import Cleaning
from fl_server.operations.call import Binding, Call, Deferred
from fl_server.operations.context import OperationsContext
from fl_server.operations.handlers.runs import RunOperations
from fl_server.operations.results.models import CleanupReport
from fl_server.runs.definition import ModelsSection
from storage.store.objects import ObjectInfo, UnfinishedUpload
from storage.versions.keys import RunKeys, runs_prefix


@dataclass(frozen=True)
class _Found:
    """What the store has under some runs' prefixes."""

    objects: list[ObjectInfo]
    uploads: list[UnfinishedUpload]


class CleanupOperations:
    """The operation that removes what neither a run that goes on nor a policy needs.

    Args:
        runs: says which runs go on or are being prepared.
    """

    def __init__(self, context: OperationsContext, runs: RunOperations) -> None:
        self._context = context
        self._registry = context.models
        self._runs = runs

    def bindings(self) -> Sequence[Binding[Any, Any]]:
        """Return what carries out each operation."""
        return (Binding(catalogue.MODELS_GC, self.models_gc),)

    def models_gc(self, wanted: Cleaning, call: Call) -> Deferred[CleanupReport]:
        """Remove what neither a run that goes on nor a policy needs.

        It is listed first and judged then, on the owner's thread: whatever was listed belongs to a
        run that was prepared before, and a run that has ended does not begin again. The counts are
        written before anything is removed: what is completed after a kill counts the same.
        """
        store, prefix = self._context.store, runs_prefix(self._registry.project)
        planned = call.planned(CleanupReport)

        def find() -> _Found:
            return _Found(list(store.list(prefix)), list(store.uploads(prefix)))

        def judge(found: _Found) -> Deferred[CleanupReport]:
            stray = self._stray(found)
            report = planned or CleanupReport(
                objects=len(stray.objects),
                uploads=len(stray.uploads),
                dry_run=wanted.dry_run,
                bytes=sum(info.size for info in stray.objects),
                keys=[info.key for info in stray.objects],
            )
            if planned is None:
                call.plan(report)

            def remove() -> None:
                if wanted.dry_run:
                    return
                for upload in stray.uploads:
                    store.abort_upload(upload.key, upload.id)
                store.delete(info.key for info in stray.objects)
                self._registry.forget(_versions_of(stray.objects))

            return Deferred(remove, lambda _: _told(report, call), in_order=True)

        return Deferred(find, judge, in_order=True)

    def _stray(self, found: _Found) -> _Found:
        by_run: dict[RunKeys, list[ObjectInfo]] = defaultdict(list)
        for info in found.objects:
            keys = RunKeys.of(info.key)
            if keys is not None and not self._runs.is_needed(keys.run_id):
                by_run[keys].append(info)
        return _Found(
            [each for keys, listed in by_run.items() for each in self._stray_of_run(keys, listed)],
            [each for each in found.uploads if self._is_stray(each)],
        )

    def _is_stray(self, upload: UnfinishedUpload) -> bool:
        keys = RunKeys.of(upload.key)
        return keys is not None and not self._runs.is_needed(keys.run_id)

    def _stray_of_run(self, keys: RunKeys, listed: list[ObjectInfo]) -> list[ObjectInfo]:
        there = {info.key for info in listed}
        known = {version.manifest.version for version in self._registry.versions(keys.run_id)}
        definition, latest = self._context.runs.definition(keys.run_id), self._latest(keys.run_id)
        policy = ModelsSection() if definition is None else definition.models
        latest = max(known, default=-1) if latest is None else latest
        retained = self._registry.retained(keys.run_id, latest, policy.keep, policy.keep_every)
        # what cannot be read stays: it may be a person's to mend
        unsure = self._registry.unreadable(keys.run_id)
        if definition is not None and not known | unsure:
            # of a kind that commits no versions: its latest is the one that it began with
            known = retained = {0}
        # a kill within a removal leaves a manifest without its model
        whole = {each for each in retained & (known | unsure) if keys.version(each) in there}
        return [info for info in listed if keys.version_of(info.key) not in whole]

    def _latest(self, run_id: str) -> int | None:
        """Return the latest version that a run has committed, None where there is no such run."""
        runs = self._context.runs
        flow = runs.of(SyncFlow).get(run_id)
        if flow is not None:
            return flow.machine.ledger.model.version
        kept = runs.history.summary(run_id)
        return None if kept is None else int(kept["rounds_completed"])


def _versions_of(objects: Sequence[ObjectInfo]) -> list[tuple[str, int]]:
    """Return the versions whose models are among the objects."""
    found = []
    for info in objects:
        keys = RunKeys.of(info.key)
        number = None if keys is None else keys.version_of(info.key)
        if keys is not None and number is not None and info.key == keys.version(number):
            found.append((keys.run_id, number))
    return found


def _told(report: CleanupReport, call: Call) -> CleanupReport:
    if report.dry_run:
        return report
    counts = {"objects": report.objects, "uploads": report.uploads}
    return call.conclude(report, AuditEvent(call.caller, "models cleaned", "", counts))
