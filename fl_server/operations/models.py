"""What an operator can do with versions of models: see, fetch, stage, tag, remove, clean up."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from pydantic import Field

from fl_server.dataplane.bundles import KeptBundle, Named
from fl_server.dataplane.urls import URL_LIFETIME_S
from fl_server.deployment.canaries import CanaryRequest
from fl_server.kinds.sync import SyncFlow
from fl_server.members.rules import AuditEvent
from fl_server.operations.arguments import PAGE_BYTES, Arguments, Deferred, Name, Result
from fl_server.runs.definition import ModelsSection
from runtime.errors import ConfigError
from storage.store.objects import ObjectInfo, UnfinishedUpload
from storage.versions.index import Version
from storage.versions.keys import RunKeys, runs_prefix
from storage.versions.manifest import Label, Reason

if TYPE_CHECKING:
    from fl_server.server import Server

_LISTED_KEYS = 200
_LONGEST_CANARY_S = 7 * 24 * 3600.0
VersionName = Annotated[str, Field(pattern=r"^[a-z0-9][a-zA-Z0-9:@._-]{0,160}$")]
TaskName = Annotated[str, Field(pattern=r"^[a-z0-9_-]{0,64}$")]
Operation: TypeAlias = Callable[[Any], Result | Deferred]


class VersionsPage(Arguments):
    """Which versions, and how many of them to pass over."""

    run_id: TaskName = ""
    task: TaskName = ""
    skip: Annotated[int, Field(ge=0)] = 0


class OneVersion(Arguments):
    """Names a version: RUN:VERSION, RUN, TASK@production, a tag, or the start of its sha256."""

    name: VersionName


class CanaryArguments(Arguments):
    """How a version is tried before it is in production."""

    share: Annotated[float, Field(gt=0, le=1)]
    metric: Annotated[str, Field(min_length=1, max_length=64)]
    max_drop: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    deadline_s: Annotated[float, Field(ge=1, le=_LONGEST_CANARY_S)]


class Promotion(OneVersion):
    """A version that is to be in production, and why; at once or after a canary."""

    reason: Reason = ""
    canary: CanaryArguments | None = None


class OneCanary(Arguments):
    """Names a canary."""

    canary_id: Name


class OfTask(Arguments):
    """A task; empty where only one has a version in production."""

    task: TaskName = ""


class Rollback(OneVersion):
    """What is in production and should not be, and why."""

    reason: Reason = ""


class Tagging(OneVersion):
    """A version and a label."""

    label: Label


class Cleaning(Arguments):
    """Whether to say only what would be removed."""

    dry_run: bool = False


@dataclass(frozen=True)
class _Found:
    """What the store has under some runs' prefixes."""

    objects: list[ObjectInfo]
    uploads: list[UnfinishedUpload]


class ModelOperations:
    """The operations on versions. All are called on the owner's thread.

    Args:
        caller: returns who asks.
        in_use: whether a run goes on or is being prepared.
    """

    def __init__(
        self, server: Server, caller: Callable[[], str], in_use: Callable[[str], bool]
    ) -> None:
        self._server = server
        self._registry = server.models
        self._caller = caller
        self._in_use = in_use
        self.table: dict[str, tuple[type[Arguments], Operation]] = {
            "models_ls": (VersionsPage, self.models_ls),
            "models_show": (OneVersion, self.models_show),
            "models_url": (OneVersion, self.models_url),
            "models_promote": (Promotion, self.models_promote),
            "canary_show": (OneCanary, self.canary_show),
            "models_production": (OfTask, self.models_production),
            "models_rollback": (Rollback, self.models_rollback),
            "models_tag": (Tagging, self.models_tag),
            "models_untag": (Tagging, self.models_untag),
            "models_rm": (OneVersion, self.models_rm),
            "models_gc": (Cleaning, self.models_gc),
        }

    # --- reading ------------------------------------------------------------------------------

    def models_ls(self, page: VersionsPage) -> Result:
        """The versions, the latest first; ``more`` says that there are others behind them."""
        rows: list[Result] = []
        left = PAGE_BYTES
        for version in self._registry.versions(page.run_id, page.task)[page.skip :]:
            row = self._row(version)
            left -= len(json.dumps(row))
            if rows and left < 0:
                return {"models": rows, "more": True}
            rows.append(row)
        return {"models": rows, "more": False}

    def models_show(self, wanted: OneVersion) -> Result:
        """One version with its lineage."""
        version = self._registry.find(wanted.name)
        return self._row(version) | {
            "manifest": version.manifest.model_dump(mode="json"),
            "record": version.record.model_dump(mode="json"),
        }

    def models_url(self, wanted: OneVersion) -> Result | Deferred:
        """A presigned GET of a version, and its signed manifest to check it by."""
        run = self._server.runner.of(SyncFlow).get(wanted.name)
        latest = 0 if run is None else run.machine.ledger.model.version
        if run is not None and not self._registry.has(wanted.name, latest):
            # committed a moment ago: its manifest is being written
            return Deferred(lambda: self._registry.find(wanted.name), self._url, in_order=True)
        return self._url(self._registry.find(wanted.name))

    def _url(self, version: Version) -> Result:
        manifest = version.manifest
        return {
            "name": manifest.name,
            "url": self._server.store.presign_get(manifest.key, URL_LIFETIME_S),
            "key": manifest.key,
            "sha256": manifest.sha256,
            "size_bytes": manifest.size_bytes,
            "manifest": self._registry.signed(version).decode(),
        }

    def _row(self, version: Version) -> Result:
        manifest, record = version.manifest, version.record
        run = self._server.runner.of(SyncFlow).get(manifest.run_id)
        measured = {} if run is None else run.machine.ledger.metrics(manifest.version)
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
            "metrics": dict(record.metrics) or measured,
            "sha256": manifest.sha256,
            "size_bytes": manifest.size_bytes,
            "created_ms": manifest.created_ms,
            "reason": record.reason[:200],
        }

    # --- stages and tags ----------------------------------------------------------------------

    def models_promote(self, wanted: Promotion) -> Result | Deferred:
        """Put a version into production, the one before it is archived; or begin a canary."""
        version = self._registry.find(wanted.name)
        if wanted.canary is not None:
            return self._tried(version, CanaryRequest(**wanted.canary.model_dump()))
        self._server.canaries.require_free(version)
        reason = wanted.reason or f"promoted by {self._caller()}"
        return self._moved(
            self._change("model promoted", version, lambda: self._registry.promote(version, reason))
        )

    def _tried(self, candidate: Version, wish: CanaryRequest) -> Result | Deferred:
        """Begin a canary, with the bundle of the candidate's run where the site still has it."""
        caller = self._caller()
        run = self._server.runner.of(SyncFlow).get(candidate.manifest.run_id)
        section = None if run is None else run.record.definition.bundle

        def begun(bundle: Named | None) -> Result:
            canary_id = self._server.canaries.begin(candidate, wish, caller, bundle)
            return {"canary_id": canary_id}

        def listed(kept: list[KeptBundle]) -> Result:
            found = [each for each in kept if section and each.sha256 == section.sha256]
            return begun(found[0] if found else None)

        return begun(None) if section is None else Deferred(self._server.bundles.list, listed)

    def canary_show(self, wanted: OneCanary) -> Result:
        """How a canary stands, or what came of it and why."""
        return self._server.canaries.show(wanted.canary_id)

    def models_production(self, wanted: OfTask) -> Deferred:
        """What is in production of a task."""
        return _once_read(lambda: self._row(self._in_production(wanted.task or self._only_task())))

    def models_rollback(self, wanted: Rollback) -> Deferred:
        """Put the version before the named one back into production.

        Where another one is in production, that was done before: a request comes again when its
        answer was lost, also from before a restart.
        """
        caller = self._caller()

        def act() -> Result | Deferred:
            version = self._registry.find(wanted.name)
            task = version.manifest.task
            now = self._in_production(task)
            if now.id != version.id:
                return self._row(now)
            reason = wanted.reason or f"rolled back by {caller}"
            return self._moved(
                self._change(
                    "model rolled back", now, lambda: self._registry.rollback(task, reason), caller
                )
            )

        return _once_read(act)

    def _in_production(self, task: str) -> Version:
        now = self._registry.production(task)
        if now is None:
            raise ConfigError(f"task {task!r} has no version in production")
        return now

    def _moved(self, change: Deferred) -> Deferred:
        """Return a change that is also told to whoever follows production."""

        def then(changed: Version) -> Result | Deferred:
            self._server.production_changed(changed.manifest.task)
            return change.then(changed)

        return replace(change, then=then)

    def models_tag(self, wanted: Tagging) -> Deferred:
        """Give a version a tag, which it takes from whichever had it."""
        version = self._registry.find(wanted.name)
        return self._change(
            "model tagged", version, lambda: self._registry.tag(version, wanted.label)
        )

    def models_untag(self, wanted: Tagging) -> Deferred:
        """Take a tag away."""
        version = self._registry.find(wanted.name)
        return self._change(
            "model untagged", version, lambda: self._registry.untag(version, wanted.label)
        )

    def models_rm(self, wanted: OneVersion) -> Deferred:
        """Remove a version and all that belongs to it."""
        version = self._registry.find(wanted.name)
        self._server.canaries.require_free(version)
        run = self._server.runner.of(SyncFlow).get(version.manifest.run_id)
        if run is not None and not run.ended:
            raise ConfigError(
                f"{version.name}: its run goes on; wait for its end or `rengo runs stop` it"
            )

        def work() -> Version:
            self._registry.remove(version)
            return version

        return self._change("model removed", version, work)

    def _change(
        self, act: str, version: Version, work: Callable[[], Version], caller: str = ""
    ) -> Deferred:
        caller = caller or self._caller()

        def then(changed: Version) -> Result:
            detail = {"now": changed.name} if changed.name != version.name else {}
            self._server.members.note(AuditEvent(caller, act, version.name, detail))
            return self._row(changed)

        return Deferred(work, then, in_order=True)

    def _only_task(self) -> str:
        tasks = {version.manifest.task for version in self._registry.versions()}
        found = sorted(task for task in tasks if self._registry.production(task) is not None)
        if len(found) != 1:
            which = f"there are {', '.join(found)}" if found else "none has a version in production"
            raise ConfigError(f"name the task: {which}")
        return found[0]

    # --- cleaning up --------------------------------------------------------------------------

    def models_gc(self, wanted: Cleaning) -> Deferred:
        """Remove what neither a run that goes on nor a policy needs.

        It is listed first and judged then, on the owner's thread: whatever was listed belongs to a
        run that was prepared before, and a run that has ended does not begin again.
        """
        store, prefix, caller = (
            self._server.store,
            runs_prefix(self._registry.project),
            self._caller(),
        )

        def look() -> _Found:
            return _Found(list(store.list(prefix)), list(store.uploads(prefix)))

        def judge(found: _Found) -> Deferred:
            stray = self._stray(found)

            def remove() -> None:
                if wanted.dry_run:
                    return
                for upload in stray.uploads:
                    store.abort_upload(upload.key, upload.id)
                store.delete(info.key for info in stray.objects)

            def told(_: object) -> Result:
                counts = {"objects": len(stray.objects), "uploads": len(stray.uploads)}
                if not wanted.dry_run:
                    self._server.members.note(AuditEvent(caller, "models cleaned", "", counts))
                return counts | {
                    "dry_run": wanted.dry_run,
                    "bytes": sum(info.size for info in stray.objects),
                    "keys": [info.key for info in stray.objects[:_LISTED_KEYS]],
                }

            return Deferred(remove, told, in_order=True)

        return Deferred(look, judge, in_order=True)

    def _stray(self, found: _Found) -> _Found:
        by_run: dict[RunKeys, list[ObjectInfo]] = defaultdict(list)
        for info in found.objects:
            keys = RunKeys.of(info.key)
            if keys is not None and not self._in_use(keys.run_id):
                by_run[keys].append(info)
        return _Found(
            [each for keys, listed in by_run.items() for each in self._stray_of_run(keys, listed)],
            [each for each in found.uploads if self._is_stray(each)],
        )

    def _is_stray(self, upload: UnfinishedUpload) -> bool:
        keys = RunKeys.of(upload.key)
        return keys is not None and not self._in_use(keys.run_id)

    def _stray_of_run(self, keys: RunKeys, listed: list[ObjectInfo]) -> list[ObjectInfo]:
        there = {info.key for info in listed}
        known = {version.manifest.version for version in self._registry.versions(keys.run_id)}
        run = self._server.runner.of(SyncFlow).get(keys.run_id)
        policy = ModelsSection() if run is None else run.record.definition.models
        latest = max(known, default=-1) if run is None else run.machine.ledger.model.version
        retained = self._registry.retained(keys.run_id, latest, policy.keep, policy.keep_every)
        # what cannot be read stays: it may be a person's to mend
        unsure = self._registry.unreadable(keys.run_id)
        # a kill within a removal leaves a manifest without its model
        whole = {each for each in retained & (known | unsure) if keys.version(each) in there}
        return [info for info in listed if keys.version_of(info.key) not in whole]


def _once_read(act: Callable[[], Result | Deferred]) -> Deferred:
    """Act behind the reading of the registry, where the server has just begun."""
    return Deferred(lambda: None, lambda _: act(), in_order=True)
