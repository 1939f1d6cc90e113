"""A project's versions as last read, and the writes of their documents.

After a failed write it is unknown what the store has: the version is then in doubt until it is read
again. An operation that a crash or a failure interrupted is completed from what the store has.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from typing import Any

from runtime.errors import Corrupt, InvalidTransition, NotFound
from runtime.security.signing import SecretKey
from storage.registry.index import VersionIndex
from storage.registry.scan import DocumentCache, new_record, read_record, scan_registry
from storage.store.objects import Objects
from storage.versions.keys import RunKeys
from storage.versions.manifest import Manifest, Record, Stage
from storage.versions.version import Version, VersionKey
from storage.weights import require_finite

_MAX_REASON_CHARS = 2000
_MAX_PROMOTIONS = 1000


class VersionStore:
    """The known versions. One thread at a time writes, any may read.

    Args:
        key: signs what is written; only what it signed is read.
        now_ms: the wall clock, for people.
        cache: saves requests when the store is scanned.
    """

    def __init__(
        self,
        store: Objects,
        project: str,
        key: SecretKey,
        now_ms: Callable[[], int],
        cache: DocumentCache | None,
    ) -> None:
        self.project = project
        self._store = store
        self._key = key
        self._now_ms = now_ms
        self._cache = cache
        self._lock = threading.Lock()
        self._index = VersionIndex()
        self.scanned = threading.Event()
        self._uncertain: set[VersionKey] = set()
        self._unreadable: dict[VersionKey, str] = {}
        self._set_aside: dict[VersionKey, str] = {}
        self._orphan_records: set[str] = set()
        # versions whose removal was interrupted
        self._being_removed: set[VersionKey] = set()
        self._promotions = 0

    @contextlib.contextmanager
    def index(self) -> Iterator[VersionIndex]:
        """Within the block the index does not change; a block must not wait for anything."""
        with self._lock:
            yield self._index

    def unreadable(self, run_id: str) -> set[int]:
        """Return the versions of a run with a document that is not valid or not given."""
        with self._lock:
            found = self._unreadable.keys() | self._set_aside.keys()
        return {number for run, number in found if run == run_id}

    def set_aside(self) -> dict[VersionKey, str]:
        """Return the versions that a damaged document keeps from being any, and why."""
        with self._lock:
            invalid = {
                key: why for key, why in self._unreadable.items() if not self._index.has(key)
            }
            return {**invalid, **self._set_aside}

    def in_doubt(self, run_id: str) -> set[int]:
        """Return the versions of a run of which it is unknown what the store has."""
        with self._lock:
            unsure = self._uncertain | self._unreadable.keys() | self._set_aside.keys()
        return {number for run, number in unsure if run == run_id}

    def require_scan(self) -> None:
        """Raise InvalidTransition before the first scan: every version would seem to be absent."""
        if not self.scanned.is_set():
            raise InvalidTransition("the model registry was not read yet: call rebuild first")

    def current(self, key: VersionKey) -> Version:
        """Return the version as it is now."""
        with self._lock:
            return self._index.get(key)

    def production(self, task: str) -> Version | None:
        """Return the task's version in production."""
        with self._lock:
            return next(iter(self._index.in_production(task)), None)

    # --- the store ----------------------------------------------------------------------------

    def scan(self) -> list[str]:
        """Read everything from the store; return what was wrong and what was completed."""
        index = VersionIndex()
        with contextlib.ExitStack() as unfinished:
            unfinished.callback(index.close)
            found = scan_registry(
                self._store, self.project, self._key.public, self._cache, index.put
            )
            unfinished.pop_all()
        with self._lock:
            self._index.close()
            self._index = index
            self._promotions = index.latest_promotion()
            self._unreadable = found.unreadable
            self._set_aside = found.set_aside
            self._uncertain = set()
        self._orphan_records = found.orphan_records
        self._being_removed = set()
        self.scanned.set()
        return found.problems + self._complete_interrupted()

    def resolve_doubts(self) -> None:
        """Read what the store has where a write failed, and complete interrupted operations."""
        self.require_scan()
        for key in list(self._being_removed):
            if self._has_model(key):
                self._being_removed.discard(key)
            else:
                self.remove(key)
        with self._lock:
            unsure = [self._index.get(key) for key in self._uncertain if self._index.has(key)]
        if not unsure:
            return
        found = [replace(each, record=self._read_again(each)) for each in unsure]
        with self._lock:
            for version in found:
                self._index.put(version)
        self._complete_interrupted()
        with self._lock:
            self._uncertain = set()

    def add(self, manifest: Manifest) -> Version:
        """Write a new version's manifest."""
        version = Version(manifest, new_record(manifest))
        orphan = version.keys.record(manifest.version)
        if orphan in self._orphan_records:
            # the record of a removed version does not belong to this one
            self._store.delete([orphan])
            self._orphan_records.discard(orphan)
        self._store.put(version.keys.manifest(manifest.version), manifest.encode(self._key))
        with self._lock:
            self._index.put(version)
            self._unreadable.pop(version.id, None)
        return version

    def write(self, version: Version, **changes: Any) -> Version:
        """Replace the version's record by one with the changes."""
        record = Record.model_validate(
            version.record.model_dump()
            | changes
            | {"revision": version.record.revision + 1, "changed_ms": self._now_ms()}
        )
        with self._lock:
            self._uncertain.add(version.id)
        self._store.put(version.keys.record(record.version), record.encode(self._key))
        changed = replace(version, record=record)
        with self._lock:
            self._uncertain.discard(version.id)
            self._unreadable.pop(version.id, None)
            self._index.put(changed)
        return changed

    def remove(self, key: VersionKey) -> None:
        """Delete a version's objects, the model first: without it the others are no version.

        One that is damaged stays known as such until all of them are gone.
        """
        keys, number = RunKeys(self.project, key[0]), key[1]
        self._being_removed.add(key)
        self._store.delete([keys.version(number)])
        self._orphan_records.add(keys.record(number))
        self.forget([key])
        self._store.delete([keys.state(number), keys.record(number), keys.manifest(number)])
        self._orphan_records.discard(keys.record(number))
        with self._lock:
            self._unreadable.pop(key, None)
            self._set_aside.pop(key, None)
        self._being_removed.discard(key)

    def forget(self, removed: Collection[VersionKey]) -> None:
        """Remove the versions from memory: the store has them no more."""
        with self._lock:
            for key in removed:
                self._index.remove(key)
                self._uncertain.discard(key)
        if self._cache is not None and removed:
            runs = [(RunKeys(self.project, run_id), number) for run_id, number in removed]
            self._cache.forget(
                key_of(number) for keys, number in runs for key_of in (keys.manifest, keys.record)
            )

    def forget_unreadable(self, run_id: str, kept: Collection[int]) -> None:
        """Note that the run's invalid documents were deleted, except those of ``kept``."""
        with self._lock:
            self._unreadable = {
                (run, number): why
                for (run, number), why in self._unreadable.items()
                if run != run_id or number in kept
            }

    def require_model(self, version: Version) -> None:
        """Raise unless the version's model is in the store, of the right size and finite.

        Raises:
            NotFound, Corrupt.
        """
        manifest = version.manifest
        size = self._store.head(manifest.key).size
        if size != manifest.size_bytes:
            raise Corrupt(f"{manifest.key}: {size} bytes, its manifest says {manifest.size_bytes}")
        with self._store.open(manifest.key) as stream:
            require_finite(stream, manifest.name)

    def _has_model(self, key: VersionKey) -> bool:
        try:
            self._store.head(RunKeys(self.project, key[0]).version(key[1]))
        except NotFound:
            return False
        return True

    def _read_again(self, version: Version) -> Record:
        try:
            return read_record(self._store, self._key.public, version.manifest)
        except NotFound:
            return new_record(version.manifest)
        except Corrupt as error:
            with self._lock:
                self._unreadable[version.id] = str(error)
            return new_record(version.manifest)

    # --- steps of operations ------------------------------------------------------------------

    def earlier(self, task: str) -> Version | None:
        """Return the version that a rollback returns to: one whose model still exists."""
        with self._lock:
            found = self._index.rollback_targets(task)
        for version in found:
            try:
                self.require_model(version)
            except (NotFound, Corrupt):
                continue
            return version
        return None

    def holders(self, label: str) -> list[Version]:
        """Return the versions with a tag, the valid one first."""
        with self._lock:
            return self._index.holders(label)

    def stage(self, version: Version, stage: Stage, reason: str) -> Version:
        """Give a version a stage other than production."""
        if version.record.stage == stage:
            return version
        return self.write(version, stage=stage, reason=_cut(reason))

    def promote(self, version: Version, reason: str) -> Version:
        """Make a version the one in production; others may still have that stage."""
        # counted before the write: a failed write may have reached the store
        self._promotions += 1
        promotions = [*version.record.promotions, self._promotions][-_MAX_PROMOTIONS:]
        return self.write(
            version,
            stage="production",
            promotions=promotions,
            withdrawn=False,
            reason=_cut(reason),
        )

    def withdraw(self, version: Version, reason: str) -> Version:
        """Mark a version that a rollback removes from production."""
        return self.write(version, withdrawn=True, reason=_cut(reason))

    def archive_others(self, production: Version) -> list[str]:
        """Archive the task's other versions in production; return what was done."""
        with self._lock:
            found = self._index.in_production(production.manifest.task)
        lines = []
        for other in found:
            if other.id != production.id:
                line = f"{production.name} is in production"
                # the reason of a withdrawal stays
                self.stage(
                    other, "archived", other.record.reason if other.record.withdrawn else line
                )
                lines.append(f"{other.name}: archived, since {line}")
        return lines

    def untag(self, version: Version, label: str) -> Version:
        """Remove a tag."""
        return self.write(version, tags=[each for each in version.record.tags if each != label])

    # --- completing interrupted operations ----------------------------------------------------

    def _complete_interrupted(self) -> list[str]:
        """Leave one version in production for each task, and one version for each tag."""
        with self._lock:
            tasks, labels = self._index.tasks_in_production(), self._index.labels()
        lines: list[str] = []
        for label in labels:
            holder, *others = self.holders(label)
            for other in others:
                self.untag(other, label)
                lines.append(f"{other.name}: has no longer the tag {label}, {holder.name} has it")
        for task in tasks:
            lines += self._complete_production(task)
        return lines

    def _complete_production(self, task: str) -> list[str]:
        with self._lock:
            top = self._index.in_production(task)[0]
        if not top.record.withdrawn:
            return self.archive_others(top)
        target = self.earlier(task)
        if target is None:
            self.write(top, withdrawn=False)
            return [f"{top.name}: stays in production, there is nothing to go back to"]
        self.archive_others(self.promote(target, top.record.reason))
        return [f"{top.name}: its rollback to {target.name} was completed"]


def _cut(reason: str) -> str:
    return reason[:_MAX_REASON_CHARS]
