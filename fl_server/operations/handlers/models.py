"""What an operator can do with versions of models: see, fetch, stage, tag and remove them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from fl_server.dataplane.bundles import KeptBundle, Named
from fl_server.dataplane.urls import URL_LIFETIME_S
from fl_server.deployment.canaries import CanaryRequest, new_canary_id
from fl_server.kinds.sync import SyncFlow
from fl_server.members.rules import AuditEvent
from fl_server.operations import catalogue
from fl_server.operations.arguments import (
    CanaryArguments,
    NoArguments,
    OfTask,
    OneCanary,
    OneVersion,
    StageChange,
    Tagging,
    VersionsOf,
)
from fl_server.operations.call import Binding, Call, Deferred, behind_byte_work
from fl_server.operations.context import OperationsContext
from fl_server.operations.handlers.run_summary import finite
from fl_server.operations.results.models import (
    CanaryBegun,
    CanaryReport,
    ModelDetail,
    ModelList,
    ModelRow,
    ModelUrl,
    SetAside,
    SetAsideList,
)
from fl_server.runs.definition import EvaluationSection
from runtime.errors import ConfigError, NotFound
from storage.versions.keys import RunKeys
from storage.versions.version import Version


class ModelOperations:
    """The operations on versions."""

    def __init__(self, context: OperationsContext) -> None:
        self._context = context
        self._registry = context.models
        self._canaries = context.canaries

    def bindings(self) -> Sequence[Binding[Any, Any]]:
        """Return what carries out each operation."""
        return (
            Binding(catalogue.MODELS_LS, self.models_ls),
            Binding(catalogue.MODELS_SET_ASIDE, self.models_set_aside),
            Binding(catalogue.MODELS_SHOW, self.models_show),
            Binding(catalogue.MODELS_PRODUCTION, self.models_production),
            Binding(catalogue.MODELS_URL, self.models_url),
            Binding(catalogue.MODELS_PROMOTE, self.models_promote),
            Binding(catalogue.MODELS_ROLLBACK, self.models_rollback),
            Binding(catalogue.MODELS_TAG, self.models_tag),
            Binding(catalogue.MODELS_UNTAG, self.models_untag),
            Binding(catalogue.MODELS_RM, self.models_rm),
            Binding(catalogue.MODELS_DISCARD, self.models_discard),
            Binding(catalogue.CANARY_BEGIN, self.canary_begin),
            Binding(catalogue.CANARY_SHOW, self.canary_show),
        )

    # --- reading ------------------------------------------------------------------------------

    def models_ls(self, wanted: VersionsOf, _: Call) -> ModelList:
        """Return the versions, the latest first."""
        versions = self._registry.versions(wanted.run_id, wanted.task)
        return ModelList(models=[ModelRow(**self._row(version)) for version in versions])

    def models_set_aside(self, _: NoArguments, __: Call) -> SetAsideList:
        """Return the versions with a document that the store does not give, or not as it was."""
        found = sorted(self._registry.set_aside().items())
        return SetAsideList(
            set_aside=[
                SetAside(name=f"{run_id}:{number}", reason=reason[:2000])
                for (run_id, number), reason in found
            ]
        )

    def models_show(self, wanted: OneVersion, _: Call) -> ModelDetail:
        """Return one version with its lineage."""
        version = self._registry.find(wanted.name)
        return ModelDetail(**self._row(version), manifest=version.manifest, record=version.record)

    def models_production(self, wanted: OfTask, _: Call) -> Deferred[ModelRow]:
        """Return what is in production of a task."""

        def find() -> ModelRow:
            return ModelRow(**self._row(self._in_production(wanted.task or self._only_task())))

        return behind_byte_work(find)

    def models_url(self, wanted: OneVersion, _: Call) -> ModelUrl | Deferred[ModelUrl]:
        """Return a presigned GET of a version, and its signed manifest to check it by."""
        run = self._sync_runs().get(wanted.name)
        latest = 0 if run is None else run.machine.ledger.model.version
        if run is not None and not self._registry.has(wanted.name, latest):
            # committed a moment ago: its manifest is being written
            return behind_byte_work(lambda: self._url(self._registry.find(wanted.name)), run.run_id)
        return self._url(self._registry.find(wanted.name))

    def canary_show(self, wanted: OneCanary, _: Call) -> CanaryReport:
        """Return how a canary stands, or what came of it and why."""
        return CanaryReport(**self._canaries.show(wanted.canary_id))

    def _url(self, version: Version) -> ModelUrl:
        manifest = version.manifest
        return ModelUrl(
            name=manifest.name,
            url=self._context.store.presign_get(manifest.key, URL_LIFETIME_S),
            key=manifest.key,
            sha256=manifest.sha256,
            size_bytes=manifest.size_bytes,
            manifest=self._registry.signed(version).decode(),
        )

    def _evaluation(self, version: Version) -> EvaluationSection:
        """Return how the version's run measures, the usual way where the run is not known."""
        run = self._sync_runs().get(version.manifest.run_id)
        return EvaluationSection() if run is None else run.record.definition.evaluation

    def _row(self, version: Version) -> dict[str, Any]:
        manifest, record = version.manifest, version.record
        run = self._sync_runs().get(manifest.run_id)
        measured = {} if run is None else run.machine.ledger.metrics(manifest.version)
        metrics = dict(record.metrics) or measured
        production = self._registry.production(manifest.task)
        return {
            "name": manifest.name,
            "run_id": manifest.run_id,
            "version": manifest.version,
            "task": manifest.task,
            "algorithm": manifest.algorithm,
            "stage": record.stage,
            "in_production": production is not None and production.name == manifest.name,
            "tags": list(record.tags),
            "headline": self._evaluation(version).headline,
            "metrics": {name: each for name, each in metrics.items() if finite(each) is not None},
            "sha256": manifest.sha256,
            "size_bytes": manifest.size_bytes,
            "created_ms": manifest.created_ms,
            "reason": record.reason[:200],
        }

    def _sync_runs(self) -> dict[str, SyncFlow]:
        return self._context.runs.of(SyncFlow)

    def _in_production(self, task: str) -> Version:
        now = self._registry.production(task)
        if now is None:
            raise ConfigError(f"task {task!r} has no version in production")
        return now

    def _only_task(self) -> str:
        tasks = self._registry.tasks()
        found = [task for task in tasks if self._registry.production(task) is not None]
        if len(found) != 1:
            which = f"there are {', '.join(found)}" if found else "none has a version in production"
            raise ConfigError(f"name the task: {which}")
        return found[0]

    # --- changing stages and tags -------------------------------------------------------------
    # Each of these may be done twice with the effect of once, where nothing comes between; and
    # nothing does: what a kill interrupted is completed before any other of them begins.

    def models_promote(self, wanted: StageChange, call: Call) -> Deferred[ModelRow]:
        """Put a version into production; the one before it is archived."""
        version = self._registry.find(wanted.name)
        self._canaries.require_free(version.name)
        reason = wanted.reason or f"promoted by {call.caller}"
        return self._change(
            call,
            "model promoted",
            version,
            lambda: self._registry.promote(version, reason),
            moves_production=True,
        )

    def models_rollback(self, wanted: StageChange, call: Call) -> ModelRow | Deferred[ModelRow]:
        """Put the version before the named one back into production.

        Where another one is in production, that was done before: by this request if it has planned
        it, which the registry then completed when it was read.
        """
        version = self._registry.find(wanted.name)
        task, act = version.manifest.task, "model rolled back"
        now = self._in_production(task)
        if now.id != version.id:
            row = ModelRow(**self._row(now))
            return row if call.planned(ModelRow) is None else self._told(call, act, version, now)
        call.plan(ModelRow(**self._row(now)))
        reason = wanted.reason or f"rolled back by {call.caller}"
        return self._change(
            call,
            act,
            now,
            lambda: self._registry.rollback(task, reason),
            moves_production=True,
        )

    def models_tag(self, wanted: Tagging, call: Call) -> Deferred[ModelRow]:
        """Give a version a tag, which it takes from whichever had it."""
        version = self._registry.find(wanted.name)
        return self._change(
            call, "model tagged", version, lambda: self._registry.tag(version, wanted.label)
        )

    def models_untag(self, wanted: Tagging, call: Call) -> ModelRow | Deferred[ModelRow]:
        """Take a tag away."""
        version, act = self._registry.find(wanted.name), "model untagged"
        if wanted.label in version.record.tags:
            call.plan(ModelRow(**self._row(version)))
        elif call.planned(ModelRow) is not None:
            return self._told(call, act, version, version)
        return self._change(call, act, version, lambda: self._registry.untag(version, wanted.label))

    def models_rm(self, wanted: OneVersion, call: Call) -> ModelRow | Deferred[ModelRow]:
        """Remove a version and all that belongs to it.

        Its row is written first: afterwards there is nothing to tell.
        """
        planned = call.planned(ModelRow)
        try:
            version = self._registry.find(wanted.name)
        except NotFound:
            if planned is None:
                raise
            return self._removal(call, planned, lambda: self._remove_rest(planned))
        self._require_free(version.manifest.run_id, version.name)
        row = ModelRow(**self._row(version))
        call.plan(row)
        return self._removal(call, row, lambda: self._registry.remove(version))

    def models_discard(self, wanted: OneVersion, call: Call) -> SetAside | Deferred[SetAside]:
        """Remove a version that is set aside, whose stage nobody can tell.

        Its row is written first: afterwards there is nothing to tell.
        """
        planned, found = call.planned(SetAside), self._registry.find_set_aside(wanted.name)
        act = AuditEvent(call.caller, "model removed", wanted.name)
        if found is None:
            if planned is None:
                raise NotFound(f"{wanted.name} is not set aside; `rengo models ls` says what is")
            return call.conclude(planned, act)
        key = found
        self._require_free(key[0], wanted.name)
        row = planned or SetAside(name=wanted.name, reason=self._registry.set_aside()[key][:2000])
        call.plan(row)
        return Deferred(
            lambda: self._registry.discard(*key),
            lambda _: call.conclude(row, act),
            in_order=True,
        )

    def _require_free(self, run_id: str, name: str) -> None:
        """Raise ConfigError while the run of a version goes on, or a canary tries it."""
        self._canaries.require_free(name)
        run = self._sync_runs().get(run_id)
        if run is not None and not run.ended:
            raise ConfigError(f"{name}: its run goes on; wait for its end or `rengo runs stop` it")

    def _removal(self, call: Call, row: ModelRow, work: Callable[[], None]) -> Deferred[ModelRow]:
        act = AuditEvent(call.caller, "model removed", row.name)
        return Deferred(work, lambda _: call.conclude(row, act), in_order=True)

    def _remove_rest(self, row: ModelRow) -> None:
        """Delete what a removal that was interrupted has left of a version."""
        keys = RunKeys(self._registry.project, row.run_id)
        parts = (keys.version, keys.state, keys.record, keys.manifest)
        self._context.store.delete([key_of(row.version) for key_of in parts])

    def _change(
        self,
        call: Call,
        act: str,
        version: Version,
        work: Callable[[], Version],
        *,
        moves_production: bool = False,
    ) -> Deferred[ModelRow]:
        def told(changed: Version) -> ModelRow:
            if moves_production:
                self._context.production_changed(changed.manifest.task)
            return self._told(call, act, version, changed)

        return Deferred(work, told, in_order=True)

    def _told(self, call: Call, act: str, version: Version, changed: Version) -> ModelRow:
        detail = {"now": changed.name} if changed.name != version.name else {}
        event = AuditEvent(call.caller, act, version.name, detail)
        return call.conclude(ModelRow(**self._row(changed)), event)

    # --- trying -------------------------------------------------------------------------------

    def canary_begin(self, wanted: CanaryArguments, call: Call) -> Deferred[CanaryBegun]:
        """Begin a canary, with the bundle of the candidate's run where the site still has it.

        The answer is written with the canary, in one transaction.
        """

        def find() -> CanaryBegun | Deferred[CanaryBegun]:
            candidate = self._registry.find(wanted.name)
            definition = self._context.runs.definition(candidate.manifest.run_id)
            section = None if definition is None else definition.bundle
            if section is None:
                return self._begin(candidate, wanted, call, None)

            def listed(kept: list[KeptBundle]) -> CanaryBegun:
                found = [each for each in kept if each.sha256 == section.sha256]
                return self._begin(candidate, wanted, call, found[0] if found else None)

            return Deferred(self._context.bundles.list, listed)

        return behind_byte_work(find)

    def _begin(
        self, candidate: Version, wanted: CanaryArguments, call: Call, bundle: Named | None
    ) -> CanaryBegun:
        evaluation = self._evaluation(candidate)
        metric = wanted.metric or evaluation.headline
        goal: Literal["", "higher", "lower"] = evaluation.metrics.get(metric, "")
        request = CanaryRequest(wanted.share, metric, wanted.max_drop, wanted.deadline_s, goal)
        production = self._registry.production(candidate.manifest.task)
        # the new one's id, and behind it that of the one that goes on in the same way, if any
        ids = [new_canary_id()]

        def acts() -> list[AuditEvent]:
            if ids[-1] != ids[0] or production is None:
                return []
            detail = {"canary": ids[0], "against": production.name}
            return [AuditEvent(call.caller, "canary begun", candidate.name, detail)]

        with call.together(lambda: CanaryBegun(canary_id=ids[-1]), acts):
            ids.append(self._canaries.begin(candidate, request, ids[0], bundle))
        return CanaryBegun(canary_id=ids[-1])
