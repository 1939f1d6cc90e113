"""The model registry: a project's versions, their stages and tags, in the object store alone.

Every document is one object, replaced whole. An act that changes several is written in an order in
which each step has one meaning, and what a crash left half done is completed by ``rebuild``:

- promote: the version gets the project's highest count, which alone makes it production; then the
  one before is archived.
- rollback: production is marked as withdrawn; the version before is promoted; the marked one is
  archived. Whoever finds a marked version in production goes on from there.
- tag: the version gets the tag; then the one before loses it. Of two, one keeps it.
- remove: the model goes first. A manifest without a model is no version, and ``gc`` removes it.
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable, Collection, Mapping

from runtime.errors import ConfigError, Corrupt, InvalidTransition, NotFound
from runtime.security.signing import SecretKey
from storage.registry.scan import Document, DocumentCache
from storage.registry.version_store import VersionStore
from storage.store.objects import Objects
from storage.versions.index import Version, looks_like_hash
from storage.versions.keys import RunKeys
from storage.versions.manifest import Manifest
from storage.versions.retention import Policy, retained

__all__ = ["Document", "DocumentCache", "ModelRegistry", "Version"]

_LABEL = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_MAX_TAGS, _MAX_METRICS, _MAX_METRIC_CHARS = 64, 64, 64
_UNTOUCHED = {"production": "in production", "candidate": "a candidate for production"}


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


class ModelRegistry:
    """A project's versions. Safe for use by many threads; one server writes for a project.

    What only reads asks no store and waits for none. What writes takes its turn, and raises
    Unavailable or AccessDenied where the store does: then it is not known whether the act took
    place, and the next act, or a rebuild, finds out and completes what was begun.

    Args:
        key: signs what is written; only what it signed is read.
        cache: saves requests when the registry is read.
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
        self._book = VersionStore(store, project, key, now_ms, cache)
        self._writing = threading.Lock()
        # task -> what was in production when a rollback began that has failed
        self._half_done: dict[str, str] = {}

    def rebuild(self) -> list[str]:
        """Read all versions from the store and complete what a crash left half done.

        Returns:
            What was wrong: documents that count as not there, and acts that were completed.
        """
        with self._writing:
            return self._book.read()

    # --- reading ------------------------------------------------------------------------------

    def versions(self, run_id: str = "", task: str = "") -> list[Version]:
        """Return the versions of a run, of a task or all of them, the newest first."""
        with self._book.look() as index:
            found = index.of_run(run_id) if run_id else index.newest_first()
        return [each for each in found if task in ("", each.manifest.task)]

    def has(self, run_id: str, version: int) -> bool:
        """Whether there is such a version."""
        with self._book.look() as index:
            return index.has((run_id, version))

    def get(self, run_id: str, version: int) -> Version:
        """Return a version; NotFound when there is none."""
        return self._book.current((run_id, version))

    def find(self, name: str) -> Version:
        """See :meth:`storage.versions.index.VersionIndex.find`."""
        with self._book.look() as index:
            return index.find(name)

    def production(self, task: str) -> Version | None:
        """Return the version of the task that is in production."""
        return self._book.production(task)

    def signed(self, version: Version) -> bytes:
        """Return the version's manifest as a signed file, as the store has it."""
        return version.manifest.encode(self._key)

    def unreadable(self, run_id: str) -> set[int]:
        """Return the versions of a run that have a document which cannot be believed."""
        return self._book.unreadable(run_id)

    def retained(self, run_id: str, latest: int, keep: int, keep_every: int) -> set[int]:
        """Return the versions of a run that a sweep must leave.

        Those are among them of which it is not known whether they have a tag or a stage.

        Args:
            latest: the last that was committed, whether or not it is known here.
            keep: how many of the latest stay.
            keep_every: every version that this divides stays; 0 for none.
        """
        self._book.require_read()
        records = [version.record for version in self.versions(run_id)]
        return retained(Policy(keep, keep_every), latest, records) | self._book.in_doubt(run_id)

    # --- what a run does ----------------------------------------------------------------------

    def commit(self, manifest: Manifest, metrics: Mapping[str, float] | None = None) -> Version:
        """Keep a new version, whose model is in the store; one that is there stays as it is.

        Raises:
            Corrupt: another version has its place.
        """
        with self._writing:
            self._book.settle()
            key = RunKeys(self.project, manifest.run_id).version(manifest.version)
            if (manifest.project, manifest.key) != (self.project, key):
                raise InvalidTransition(f"{manifest.name} of {manifest.project}: {manifest.key}")
            if not self.has(manifest.run_id, manifest.version):
                version = self._book.add(manifest)
            else:
                version = self.get(manifest.run_id, manifest.version)
            if version.manifest.sha256 != manifest.sha256:
                raise Corrupt(
                    f"{version.name} has sha256 {version.manifest.sha256}, "
                    f"and cannot become {manifest.sha256}"
                )
            return self._measure(version, metrics or {})

    def measure(self, run_id: str, version: int, metrics: Mapping[str, float]) -> Version:
        """Add to what a version was measured to be.

        At most 64 metrics are kept, the first by name; one that is not finite is left out.
        """
        with self._writing:
            self._book.settle()
            return self._measure(self.get(run_id, version), metrics)

    def forget_others(self, run_id: str, kept: Collection[int]) -> None:
        """Take note that a sweep has removed all other versions of a run with all they had."""
        with self._writing:
            gone = [each for each in self.versions(run_id) if each.manifest.version not in kept]
            self._book.forget(gone)
            self._book.forget_unreadable(run_id, kept)

    # --- stages and tags ----------------------------------------------------------------------

    def candidate(self, version: Version, reason: str) -> Version:
        """Make a version a candidate for production; ConfigError where it is in production."""
        with self._writing:
            found = self._now(version)
            if found.record.stage == "production":
                raise ConfigError(f"{found.name} is in production already")
            return self._book.stage(found, "candidate", reason)

    def archive(self, version: Version, reason: str) -> Version:
        """Take a version out of its stage; where it was in production, nothing is then."""
        with self._writing:
            found = self._now(version)
            self._half_done.pop(found.manifest.task, None)
            return self._book.stage(found, "archived", reason)

    def promote(self, version: Version, reason: str) -> Version:
        """Put a version into production for its task; what was there is archived.

        Raises:
            NotFound: there is no such version, or its model is gone.
            Corrupt: its model has another size than it should.
        """
        with self._writing:
            found = self._now(version)
            self._half_done.pop(found.manifest.task, None)
            before = self.production(found.manifest.task)
            if before is None or before.id != found.id or found.record.withdrawn:
                self._book.require_model(found)
                found = self._book.promote(found, reason)
            self._book.archive_others(found)
            return found

    def rollback(self, task: str, reason: str) -> Version:
        """Put the version before back into production and return it.

        That is the last promoted one that was not rolled back itself. What is in production now is
        archived, and no rollback returns to it until it is promoted by name. Where the call before
        failed half way, this one completes that and does no more.

        Raises:
            ConfigError: there is none.
        """
        with self._writing:
            self._book.settle()
            now = self.production(task)
            failed = self._half_done.pop(task, None)
            if failed is not None and now is not None and now.name != failed:
                return now
            target = self._book.earlier(task)
            if target is None:
                raise ConfigError(f"task {task!r} has no version to go back to")
            self._half_done[task] = "" if now is None else now.name
            if now is not None:
                self._book.withdraw(now, reason)
            found = self._book.promote(target, reason)
            self._book.archive_others(found)
            del self._half_done[task]
            return found

    def tag(self, version: Version, label: str) -> Version:
        """Give a version a tag, and take it from whichever had it.

        Raises:
            ConfigError: the label would mean something else, or the version has 64 tags.
        """
        with self._writing:
            found = self._now(version)
            self._require_label(label)
            tags = found.record.tags
            if label not in tags:
                if len(tags) >= _MAX_TAGS:
                    raise ConfigError(f"{found.name} has {_MAX_TAGS} tags: take one away first")
                found = self._book.write(found, tags=sorted([*tags, label]))
            for other in self._book.holders(label):
                if other.id != found.id:
                    self._book.untag(other, label)
            return found

    def untag(self, version: Version, label: str) -> Version:
        """Take a tag away; NotFound when the version does not have it."""
        with self._writing:
            found = self._now(version)
            if label not in found.record.tags:
                raise NotFound(f"{found.name} has no tag {label!r}")
            return self._book.untag(found, label)

    def remove(self, version: Version) -> None:
        """Remove a version with all its objects; one that is gone already is cleaned up after.

        Raises:
            ConfigError: it is in production or a candidate.
        """
        with self._writing:
            self._book.settle()
            if self.has(*version.id):
                version = self.get(*version.id)
                what = _UNTOUCHED.get(version.record.stage)
                if what is not None:
                    raise ConfigError(f"{version.name} is {what}, and is not removed while it is")
            self._book.remove(version)

    def _now(self, version: Version) -> Version:
        self._book.settle()
        return self._book.current(version.id)

    def _measure(self, version: Version, metrics: Mapping[str, float]) -> Version:
        merged = version.record.metrics | _usable(metrics)
        kept = {name: merged[name] for name in sorted(merged)[:_MAX_METRICS]}
        return (
            version if kept == version.record.metrics else self._book.write(version, metrics=kept)
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
        for name, value in metrics.items()
        if math.isfinite(value) and 0 < len(name) <= _MAX_METRIC_CHARS
    }
