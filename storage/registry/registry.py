"""The model registry: a project's versions, their stages and tags, in the object store alone.

Every document is one object, replaced whole. An operation that changes several writes them in an
order in which the state after each step has one meaning, so that ``rebuild`` can complete what a
crash interrupted:

- promote: the version gets the project's highest count, which alone makes it production; then the
  previous one is archived.
- rollback: the version in production is marked as withdrawn; the earlier version is promoted; the
  marked one is archived. Where a marked version is found in production, the rollback continues.
- tag: the version gets the tag; then the previous one loses it. Of two, one keeps it.
- remove: the model is deleted first. A manifest without a model is no version; ``gc`` removes it.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager

from runtime.bounds import MAX_METRIC_NAME, MAX_METRICS, plausible
from runtime.errors import ConfigError, Corrupt, InvalidTransition, NotFound
from runtime.security.signing import SecretKey
from storage.registry.scan import Document, DocumentCache
from storage.registry.version_store import VersionStore
from storage.store.objects import Objects
from storage.versions.keys import RunKeys
from storage.versions.manifest import Manifest
from storage.versions.retention import Policy, retained
from storage.versions.version import Version, VersionKey, looks_like_hash

__all__ = ["Document", "DocumentCache", "ModelRegistry", "Version"]

_LABEL = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_MAX_TAGS = 64
_NOT_REMOVED = {"production": "in production", "candidate": "a candidate for production"}


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


class ModelRegistry:
    """A project's versions. Any thread may call it; one server writes for a project.

    Methods that only read do not access the store. Those that write run one at a time, and raise
    Unavailable or AccessDenied where the store does: then it is unknown whether the operation took
    place, and the next one, or a rebuild, finds out and completes it.

    Args:
        key: signs what is written; only what it signed is read.
        cache: saves requests when the store is scanned.
        now_ms: the wall clock, for people.
    """

    def __init__(
        self,
        store: Objects,
        project: str,
        key: SecretKey,
        cache: DocumentCache | None = None,
        now_ms: Callable[[], int] = _wall_ms,
    ) -> None:
        self.project = project
        self._key = key
        self._versions = VersionStore(store, project, key, now_ms, cache)
        self._writing = threading.RLock()
        # task -> the version in production before a rollback that failed
        self._failed_rollbacks: dict[str, str] = {}

    def rebuild(self) -> list[str]:
        """Read all versions from the store and complete operations that a crash interrupted.

        Returns:
            What was wrong: documents that count as absent, and operations that were completed.
        """
        with self._writing:
            return self._versions.scan()

    def wait_read(self, timeout_s: float) -> bool:
        """Return whether it was read from the store, after at most this time."""
        return self._versions.scanned.wait(timeout_s)

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Within the block no other thread changes a version, as by a tag or a promotion."""
        with self._writing:
            yield

    # --- reading ------------------------------------------------------------------------------

    def versions(self, run_id: str = "", task: str = "") -> list[Version]:
        """Return the versions of a run, of a task or all of them, the newest first."""
        with self._versions.index() as index:
            found = index.of_run(run_id) if run_id else index.newest_first()
        return [each for each in found if task in ("", each.manifest.task)]

    def runs(self) -> list[str]:
        """Return the ids of the runs that have versions."""
        with self._versions.index() as index:
            return index.runs()

    def tasks(self) -> list[str]:
        """Return the tasks that have versions."""
        with self._versions.index() as index:
            return index.tasks()

    def has(self, run_id: str, version: int) -> bool:
        """Whether there is such a version."""
        with self._versions.index() as index:
            return index.has((run_id, version))

    def get(self, run_id: str, version: int) -> Version:
        """Return a version; NotFound when there is none."""
        return self._versions.current((run_id, version))

    def find(self, name: str) -> Version:
        """See :meth:`storage.registry.index.VersionIndex.find`."""
        try:
            with self._versions.index() as index:
                return index.find(name)
        except NotFound:
            for (run_id, number), reason in self.set_aside().items():
                if name in (run_id, f"{run_id}:{number}"):
                    raise NotFound(f"{run_id}:{number} is set aside: {reason}") from None
            raise

    def find_set_aside(self, name: str) -> VersionKey | None:
        """Return which version that is set aside ``RUN:VERSION`` names, None if none."""
        found = (key for key in self.set_aside() if name == f"{key[0]}:{key[1]}")
        return next(found, None)

    def production(self, task: str) -> Version | None:
        """Return the version of the task that is in production."""
        return self._versions.production(task)

    def signed(self, version: Version) -> bytes:
        """Return the version's manifest as a signed file, as the store has it."""
        return version.manifest.encode(self._key)

    def set_aside(self) -> dict[tuple[str, int], str]:
        """Return the versions that are none since a document is not given or not valid, and why."""
        return self._versions.set_aside()

    def unreadable(self, run_id: str) -> set[int]:
        """Return the versions of a run with a document that is not valid or not given."""
        return self._versions.unreadable(run_id)

    def retained(self, run_id: str, latest: int, keep: int, keep_every: int) -> set[int]:
        """Return the versions of a run that a cleanup must keep.

        They include versions of which it is unknown whether they have a tag or a stage.

        Args:
            latest: the last that was committed, whether or not it is known here.
            keep: how many of the latest to keep.
            keep_every: every version that this divides is kept; 0 for none.
        """
        self._versions.require_scan()
        records = [version.record for version in self.versions(run_id)]
        return retained(Policy(keep, keep_every), latest, records) | self._versions.in_doubt(run_id)

    # --- what a run does ----------------------------------------------------------------------

    def commit(self, manifest: Manifest, metrics: Mapping[str, float] | None = None) -> Version:
        """Add a new version, whose model is in the store; an existing one stays as it is.

        Raises:
            Corrupt: another version has its number.
        """
        with self._writing:
            self._versions.resolve_doubts()
            key = RunKeys(self.project, manifest.run_id).version(manifest.version)
            if (manifest.project, manifest.key) != (self.project, key):
                raise InvalidTransition(f"{manifest.name} of {manifest.project}: {manifest.key}")
            if not self.has(manifest.run_id, manifest.version):
                version = self._versions.add(manifest)
            else:
                version = self.get(manifest.run_id, manifest.version)
            if version.manifest.sha256 != manifest.sha256:
                raise Corrupt(
                    f"{version.name} has sha256 {version.manifest.sha256}, "
                    f"and cannot become {manifest.sha256}"
                )
            return self._measure(version, metrics or {})

    def measure(self, run_id: str, version: int, metrics: Mapping[str, float]) -> Version:
        """Add to a version's metrics.

        At most 64 are kept, the first by name; values that are not finite are left out.
        """
        with self._writing:
            self._versions.resolve_doubts()
            return self._measure(self.get(run_id, version), metrics)

    def forget_others(self, run_id: str, kept: Collection[int]) -> None:
        """Note that a cleanup has removed all other versions of a run with their objects."""
        with self._writing:
            known = (version.id for version in self.versions(run_id))
            self._versions.forget([key for key in known if key[1] not in kept])
            self._versions.forget_unreadable(run_id, kept)

    def forget(self, removed: Collection[VersionKey]) -> None:
        """Note that a collection has removed versions with their objects."""
        with self._writing:
            self._versions.forget(removed)

    # --- stages and tags ----------------------------------------------------------------------

    def candidate(self, version: Version, reason: str) -> Version:
        """Make a version a candidate for production.

        Raises:
            ConfigError: it is in production.
            NotFound, Corrupt: as for ``promote``.
        """
        with self._writing:
            found = self._current(version)
            if found.record.stage == "production":
                raise ConfigError(f"{found.name} is in production already")
            self._versions.require_model(found)
            return self._versions.stage(found, "candidate", reason)

    def archive(self, version: Version, reason: str) -> Version:
        """Archive a version; where it was in production, no version is afterwards."""
        with self._writing:
            found = self._current(version)
            self._failed_rollbacks.pop(found.manifest.task, None)
            return self._versions.stage(found, "archived", reason)

    def promote(self, version: Version, reason: str) -> Version:
        """Put a version into production for its task; the previous one is archived.

        Raises:
            NotFound: there is no such version, or its model is not in the store.
            Corrupt: its model has a wrong size, or values that are not finite.
        """
        with self._writing:
            found = self._current(version)
            self._failed_rollbacks.pop(found.manifest.task, None)
            before = self.production(found.manifest.task)
            if before is None or before.id != found.id or found.record.withdrawn:
                self._versions.require_model(found)
                found = self._versions.promote(found, reason)
            self._versions.archive_others(found)
            return found

    def rollback(self, task: str, reason: str) -> Version:
        """Put the previous version back into production and return it.

        That is the last promoted one that was not rolled back itself. The version in production is
        archived, and no rollback returns to it until it is promoted by name. Where the call before
        failed half way, this one completes that and does no more.

        Raises:
            ConfigError: there is none.
        """
        with self._writing:
            self._versions.resolve_doubts()
            now = self.production(task)
            failed = self._failed_rollbacks.pop(task, None)
            if failed is not None and now is not None and now.name != failed:
                return now
            target = self._versions.earlier(task)
            if target is None:
                raise ConfigError(f"task {task!r} has no version to go back to")
            self._failed_rollbacks[task] = "" if now is None else now.name
            if now is not None:
                self._versions.withdraw(now, reason)
            found = self._versions.promote(target, reason)
            self._versions.archive_others(found)
            del self._failed_rollbacks[task]
            return found

    def tag(self, version: Version, label: str) -> Version:
        """Give a version a tag, and remove it from the version that had it.

        Raises:
            ConfigError: the label would mean something else, or the version has 64 tags.
        """
        with self._writing:
            found = self._current(version)
            self._require_label(label)
            tags = found.record.tags
            if label not in tags:
                if len(tags) >= _MAX_TAGS:
                    raise ConfigError(f"{found.name} has {_MAX_TAGS} tags: take one away first")
                found = self._versions.write(found, tags=sorted([*tags, label]))
            for other in self._versions.holders(label):
                if other.id != found.id:
                    self._versions.untag(other, label)
            return found

    def untag(self, version: Version, label: str) -> Version:
        """Remove a tag; NotFound when the version does not have it."""
        with self._writing:
            found = self._current(version)
            if label not in found.record.tags:
                raise NotFound(f"{found.name} has no tag {label!r}")
            return self._versions.untag(found, label)

    def remove(self, version: Version) -> None:
        """Remove a version with all its objects, or what is left of one that was removed.

        Raises:
            ConfigError: it is in production or a candidate.
        """
        with self._writing:
            self._versions.resolve_doubts()
            if self.has(*version.id):
                version = self.get(*version.id)
                what = _NOT_REMOVED.get(version.record.stage)
                if what is not None:
                    raise ConfigError(f"{version.name} is {what}, and is not removed while it is")
            self._versions.remove(version.id)

    def discard(self, run_id: str, version: int) -> None:
        """Remove what there is of a version that is set aside, whatever its stage was.

        Raises:
            ConfigError: it is a version again.
        """
        with self._writing:
            self._versions.resolve_doubts()
            if self.has(run_id, version):
                raise ConfigError(f"{run_id}:{version} is not set aside any more")
            self._versions.remove((run_id, version))

    def _current(self, version: Version) -> Version:
        self._versions.resolve_doubts()
        return self._versions.current(version.id)

    def _measure(self, version: Version, metrics: Mapping[str, float]) -> Version:
        merged = version.record.metrics | _usable(metrics)
        kept = {name: merged[name] for name in sorted(merged)[:MAX_METRICS]}
        return (
            version
            if kept == version.record.metrics
            else self._versions.write(version, metrics=kept)
        )

    def _require_label(self, label: str) -> None:
        if _LABEL.fullmatch(label) is None:
            raise ConfigError(f"a tag is up to 64 of a-z, 0-9, '.', '_' and '-', not {label!r}")
        if label == "production":
            raise ConfigError("'production' is a stage: promote the version instead")
        if looks_like_hash(label):
            raise ConfigError(f"a tag {label!r} would read as the start of a sha256")
        if self.versions(label):
            raise ConfigError(f"a tag {label!r} would read as the run of that name")


def _usable(metrics: Mapping[str, float]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in plausible(metrics).items()
        if 0 < len(name) <= MAX_METRIC_NAME
    }
