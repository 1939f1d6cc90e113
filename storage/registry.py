"""The model registry: a project's versions, their stages and tags, in the object store alone.

Every document is one object, replaced whole. An act that changes several is written in an order in
which each step has one meaning, and what a crash left half done is completed by ``rebuild``:

- promote: the version gets the project's highest count, which alone makes it production; then the
  one before is archived.
- rollback: production is marked as withdrawn; the version before is promoted; the marked one is
  archived. Whoever finds a marked version in production goes on from there.
- tag: the version gets the tag; then the one before loses it. Of two, the later change has it.
- remove: the model goes first. A manifest without a model is no version, and ``gc`` removes it.
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from runtime.errors import ConfigError, Corrupt, InvalidTransition, NotFound
from runtime.signing import SecretKey
from storage.catalogue import (
    Document,
    DocumentCache,
    new_record,
    read_catalogue,
    read_record,
)
from storage.keys import RunKeys
from storage.manifest import Manifest, Record
from storage.objects import ObjectStore
from storage.retention import Policy, retained
from storage.versions import Version, VersionIndex, VersionKey, looks_like_hash

__all__ = ["Document", "DocumentCache", "ModelRegistry", "Version"]

_LABEL = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_MAX_TAGS, _MAX_METRICS, _MAX_METRIC_CHARS = 64, 64, 64
_MAX_REASON_CHARS = 2000
_MAX_PROMOTIONS = 1000


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
        store: ObjectStore,
        project: str,
        key: SecretKey,
        cache: DocumentCache | None = None,
        now_ms: Callable[[], int] = _wall_ms,
    ) -> None:
        self.project = project
        self._store = store
        self._key = key
        self._cache = cache
        self._now_ms = now_ms
        self._writing = threading.RLock()
        self._looking = threading.Lock()
        self._index = VersionIndex()
        self._was_read = False
        # whose record in the store may be another than here: a write failed half way
        self._uncertain: set[VersionKey] = set()
        self._unreadable: set[VersionKey] = set()
        self._strays: set[str] = set()
        self._promotions = 0
        self._changed_ms = 0

    def rebuild(self) -> list[str]:
        """Read all versions from the store and complete what a crash left half done.

        Returns:
            What was wrong: documents that count as not there, and acts that were completed.
        """
        with self._writing:
            found = read_catalogue(self._store, self.project, self._key.public, self._cache)
            index = VersionIndex(found.versions)
            records = [version.record for version in found.versions]
            with self._looking:
                self._index = index
                self._unreadable = found.unreadable
                self._uncertain = set()
            self._strays = found.strays
            self._promotions = max((version.promoted for version in index), default=0)
            self._changed_ms = max((record.changed_ms for record in records), default=0)
            self._was_read = True
            if self._cache is not None and found.read:
                self._cache.put(found.read)
            return found.lines + self._mend()

    # --- reading ------------------------------------------------------------------------------

    def versions(self, run_id: str = "", task: str = "") -> list[Version]:
        """Return the versions of a run, of a task or all of them, the newest first."""
        with self._looking:
            if run_id:
                found = self._index.of_run(run_id)
                return [each for each in found if task in ("", each.manifest.task)]
            return self._index.newest_first(task)

    def has(self, run_id: str, version: int) -> bool:
        """Whether there is such a version."""
        with self._looking:
            return self._index.has((run_id, version))

    def get(self, run_id: str, version: int) -> Version:
        """Return a version; NotFound when there is none."""
        with self._looking:
            return self._index.get((run_id, version))

    def find(self, name: str) -> Version:
        """See :meth:`storage.versions.VersionIndex.find`."""
        with self._looking:
            return self._index.find(name)

    def production(self, task: str) -> Version | None:
        """Return the version of the task that is in production."""
        with self._looking:
            return next(iter(self._index.in_production(task)), None)

    def signed(self, version: Version) -> bytes:
        """Return the version's manifest as a signed file, as the store has it."""
        return version.manifest.encode(self._key)

    def unreadable(self, run_id: str) -> set[int]:
        """Return the versions of a run that have a document which cannot be believed."""
        with self._looking:
            return {number for run, number in self._unreadable if run == run_id}

    def retained(self, run_id: str, latest: int, keep: int, keep_every: int) -> set[int]:
        """Return the versions of a run that a sweep must leave.

        Those of which it is not known what holds of them are among them.

        Args:
            latest: the last that was committed, whether or not it is known here.
            keep: how many of the latest stay.
            keep_every: every version that this divides stays; 0 for none.
        """
        self._require_read()
        with self._looking:
            records = [version.record for version in self._index.of_run(run_id)]
            unsure = {number for run, number in self._uncertain | self._unreadable if run == run_id}
        return retained(Policy(keep, keep_every), latest, records) | unsure

    # --- what a run does ----------------------------------------------------------------------

    def commit(self, manifest: Manifest, metrics: Mapping[str, float] | None = None) -> Version:
        """Keep a new version, whose model is in the store; one that is there stays as it is.

        Raises:
            Corrupt: another version has its place.
        """
        with self._writing:
            self._settle()
            keys = RunKeys(self.project, manifest.run_id)
            number = manifest.version
            if (manifest.project, manifest.key) != (self.project, keys.version(number)):
                raise InvalidTransition(f"{manifest.name} of {manifest.project}: {manifest.key}")
            if self.has(manifest.run_id, number):
                version = self.get(manifest.run_id, number)
                if version.manifest.sha256 != manifest.sha256:
                    raise Corrupt(
                        f"{version.name} has sha256 {version.manifest.sha256}, "
                        f"and cannot become {manifest.sha256}"
                    )
            else:
                version = self._add(manifest, keys)
            return self.measure(*version.id, metrics) if metrics else version

    def _add(self, manifest: Manifest, keys: RunKeys) -> Version:
        stray = keys.record(manifest.version)
        if stray in self._strays:
            self._store.delete([stray])
            self._strays.discard(stray)
        version = Version(manifest, new_record(manifest))
        self._put(keys.manifest(manifest.version), manifest.encode(self._key))
        with self._looking:
            self._index.put(version)
            self._unreadable.discard(version.id)
        return version

    def measure(self, run_id: str, version: int, metrics: Mapping[str, float]) -> Version:
        """Add to what a version was measured to be.

        At most 64 metrics are kept, the first by name; one that is not finite is left out.
        """
        with self._writing:
            self._settle()
            found = self.get(run_id, version)
            merged = {**found.record.metrics, **_finite(metrics)}
            kept = {name: merged[name] for name in sorted(merged)[:_MAX_METRICS]}
            return found if kept == found.record.metrics else self._write(found, metrics=kept)

    def forget_others(self, run_id: str, kept: Collection[int]) -> None:
        """Take note that a sweep has removed all other versions of a run with all they had."""
        with self._writing:
            gone = [each for each in self.versions(run_id) if each.manifest.version not in kept]
            for version in gone:
                self._forget(version)
            with self._looking:
                self._unreadable = {
                    key for key in self._unreadable if key[0] != run_id or key[1] in kept
                }

    # --- stages and tags ----------------------------------------------------------------------

    def candidate(self, version: Version, reason: str) -> Version:
        """Make a version a candidate for production; ConfigError where it is in production."""
        with self._writing:
            found = self._current(version)
            if found.record.stage == "production":
                raise ConfigError(f"{found.name} is in production already")
            return self._stage(found, "candidate", reason)

    def archive(self, version: Version, reason: str) -> Version:
        """Take a version out of its stage; where it was in production, nothing is then."""
        with self._writing:
            return self._stage(self._current(version), "archived", reason)

    def promote(self, version: Version, reason: str) -> Version:
        """Put a version into production for its task; what was there is archived.

        Raises:
            NotFound: there is no such version, or its model is gone.
        """
        with self._writing:
            found = self._current(version)
            now = self.production(found.manifest.task)
            if now is None or now.id != found.id:
                self._require_model(found)
                found = self._promote(found, reason)
            self._archive_others(found, f"{found.name} was promoted")
            return found

    def rollback(self, task: str, reason: str) -> Version:
        """Put the version before back into production and return it.

        That is the last promoted one that was not rolled back itself. What is in production now is
        archived, and no rollback returns to it until it is promoted by name.

        Raises:
            ConfigError: there is none.
        """
        with self._writing:
            self._require_read()
            before = self.production(task)
            self._settle()
            now = self.production(task)
            if before is not None and now is not None and now.id != before.id:
                # where so, an earlier call had failed half way, and was completed just now
                was_rolled_back = self.get(*before.id).record.withdrawn
                if was_rolled_back:
                    return now
            target = self._earlier(task)
            if target is None:
                raise ConfigError(f"task {task!r} has no version to go back to")
            if now is not None:
                self._write(now, withdrawn=True, reason=_cut(reason))
            return self._go_back(task, target, reason)

    def tag(self, version: Version, label: str) -> Version:
        """Give a version a tag, and take it from whichever had it.

        Raises:
            ConfigError: the label means something else, or the version has 64 tags.
        """
        with self._writing:
            found = self._current(version)
            self._require_label(label)
            if label not in found.record.tags:
                if len(found.record.tags) >= _MAX_TAGS:
                    raise ConfigError(f"{found.name} has {_MAX_TAGS} tags: take one away first")
                found = self._write(found, tags=sorted([*found.record.tags, label]))
            for other in self._holders(label):
                if other.id != found.id:
                    self._untag(other, label)
            return found

    def untag(self, version: Version, label: str) -> Version:
        """Take a tag away; NotFound when the version does not have it."""
        with self._writing:
            found = self._current(version)
            if label not in found.record.tags:
                raise NotFound(f"{found.name} has no tag {label!r}")
            return self._untag(found, label)

    def remove(self, version: Version) -> None:
        """Remove a version with all its objects; one that is gone already is cleaned up after.

        Raises:
            ConfigError: it is in production or a candidate.
        """
        with self._writing:
            self._settle()
            found = self.get(*version.id) if self.has(*version.id) else version
            stage = found.record.stage
            if self.has(*version.id) and stage in ("production", "candidate"):
                raise ConfigError(f"{found.name} is {_WORDS[stage]}: it stays until it is not")
            keys, number = found.keys, found.manifest.version
            self._store.delete([found.manifest.key])
            self._strays.add(keys.record(number))
            self._forget(found)
            self._store.delete([keys.state(number), keys.record(number), keys.manifest(number)])
            self._strays.discard(keys.record(number))

    # --- writing ------------------------------------------------------------------------------

    def _require_read(self) -> None:
        if not self._was_read:
            raise InvalidTransition("the model registry was not read yet: call rebuild first")

    def _require_label(self, label: str) -> None:
        if _LABEL.fullmatch(label) is None:
            raise ConfigError(f"a tag is up to 64 of a-z, 0-9, '.', '_' and '-', not {label!r}")
        if label == "production":
            raise ConfigError("'production' is a stage: promote the version instead")
        if looks_like_hash(label):
            raise ConfigError(f"a tag {label!r} would read as the start of a sha256")
        if self.versions(label):
            raise ConfigError(f"a tag {label!r} would read as the run of that name")

    def _require_model(self, version: Version) -> None:
        manifest = version.manifest
        size = self._store.head(manifest.key).size
        if size != manifest.size_bytes:
            raise Corrupt(f"{manifest.key}: {size} bytes, its manifest says {manifest.size_bytes}")

    def _current(self, version: Version) -> Version:
        self._settle()
        return self.get(*version.id)

    def _holders(self, label: str) -> list[Version]:
        with self._looking:
            return self._index.holders(label)

    def _earlier(self, task: str) -> Version | None:
        """Return the version that a rollback goes to: one whose model is still there."""
        with self._looking:
            found = self._index.earlier(task)
        for version in found:
            try:
                self._require_model(version)
            except (NotFound, Corrupt):
                continue
            return version
        return None

    def _stage(self, version: Version, stage: str, reason: str) -> Version:
        if version.record.stage == stage:
            return version
        return self._write(version, stage=stage, reason=_cut(reason))

    def _promote(self, version: Version, reason: str) -> Version:
        # counted before it is written: a write that failed may have been done nonetheless
        self._promotions += 1
        promotions = [*version.record.promotions, self._promotions][-_MAX_PROMOTIONS:]
        return self._write(
            version,
            stage="production",
            promotions=promotions,
            withdrawn=False,
            reason=_cut(reason),
        )

    def _archive_others(self, production: Version, reason: str) -> list[str]:
        with self._looking:
            found = self._index.in_production(production.manifest.task)
        lines = []
        for other in found:
            if other.id != production.id:
                # why it was withdrawn is worth more than that it is archived
                kept = other.record.reason if other.record.withdrawn else reason
                self._write(other, stage="archived", reason=_cut(kept))
                lines.append(f"{other.name}: archived, since {production.name} is in production")
        return lines

    def _go_back(self, task: str, target: Version, reason: str) -> Version:
        found = self._promote(target, reason)
        self._archive_others(found, reason)
        return found

    def _untag(self, version: Version, label: str) -> Version:
        return self._write(version, tags=[each for each in version.record.tags if each != label])

    def _write(self, version: Version, **changes: Any) -> Version:
        """Replace the version's record."""
        self._changed_ms = max(self._now_ms(), self._changed_ms + 1)
        record = Record.model_validate(
            version.record.model_dump()
            | changes
            | {"revision": version.record.revision + 1, "changed_ms": self._changed_ms}
        )
        with self._looking:
            self._uncertain.add(version.id)
        self._put(version.keys.record(version.manifest.version), record.encode(self._key))
        changed = replace(version, record=record)
        with self._looking:
            self._uncertain.discard(version.id)
            self._unreadable.discard(version.id)
            self._index.put(changed)
        return changed

    def _put(self, key: str, data: bytes) -> None:
        self._require_read()
        self._store.put(key, data)

    def _forget(self, version: Version) -> None:
        keys, number = version.keys, version.manifest.version
        with self._looking:
            self._index.drop(version.id)
            self._uncertain.discard(version.id)
            self._unreadable.discard(version.id)
        if self._cache is not None:
            self._cache.forget([keys.manifest(number), keys.record(number)])

    # --- completing what was begun ------------------------------------------------------------

    def _settle(self) -> None:
        """Find out what the store holds where a write failed, and complete what was begun."""
        self._require_read()
        with self._looking:
            unsure = [self._index.get(key) for key in self._uncertain if self._index.has(key)]
        if not unsure:
            return
        found = [replace(each, record=self._read_again(each)) for each in unsure]
        with self._looking:
            for version in found:
                self._index.put(version)
        self._mend()
        with self._looking:
            self._uncertain = set()

    def _read_again(self, version: Version) -> Record:
        try:
            return read_record(self._store, self._key.public, version.manifest)
        except NotFound:
            return new_record(version.manifest)
        except Corrupt:
            with self._looking:
                self._unreadable.add(version.id)
            return new_record(version.manifest)

    def _mend(self) -> list[str]:
        """Leave one version in production for each task, and one for each tag."""
        with self._looking:
            tasks, labels = self._index.tasks_in_production(), self._index.labels()
        lines: list[str] = []
        for task in tasks:
            lines += self._mend_production(task)
        for label in labels:
            holder, *others = self._holders(label)
            for other in others:
                self._untag(other, label)
                lines.append(f"{other.name}: has no longer the tag {label}, {holder.name} has it")
        return lines

    def _mend_production(self, task: str) -> list[str]:
        with self._looking:
            top = self._index.in_production(task)[0]
        if not top.record.withdrawn:
            return self._archive_others(top, f"{top.name} was promoted")
        target = self._earlier(task)
        if target is None:
            self._write(top, withdrawn=False)
            return [f"{top.name}: stays in production, there is nothing to go back to"]
        self._go_back(task, target, f"{top.name} was rolled back: {top.record.reason}")
        return [f"{top.name}: its rollback to {target.name} was completed"]


_WORDS = {"production": "in production", "candidate": "a candidate"}


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in metrics.items()
        if math.isfinite(value) and 0 < len(name) <= _MAX_METRIC_CHARS
    }


def _cut(reason: str) -> str:
    return reason[:_MAX_REASON_CHARS]
