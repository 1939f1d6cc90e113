"""The versions of a project in memory, and the names by which people find them. Pure."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from runtime.errors import ConfigError, NotFound
from storage.versions.keys import RunKeys
from storage.versions.manifest import Manifest, Record

VersionKey: TypeAlias = tuple[str, int]
_AT = "@production"
_HASH = re.compile(r"[0-9a-f]{8,64}")
_NUMBER = re.compile(r"[0-9]{1,15}")
_SHOWN = 5


@dataclass(frozen=True)
class Version:
    """A committed version: its manifest, which never changes, and its record, which may."""

    manifest: Manifest
    record: Record

    @property
    def name(self) -> str:
        """``RUN:VERSION``."""
        return self.manifest.name

    @property
    def id(self) -> VersionKey:
        """The run and the number."""
        return self.manifest.run_id, self.manifest.version

    @property
    def keys(self) -> RunKeys:
        """The keys of the run's objects."""
        return RunKeys(self.manifest.project, self.manifest.run_id)

    @property
    def promoted(self) -> int:
        """The count of its last promotion, 0 where it was never in production."""
        return max(self.record.promotions, default=0)


def looks_like_hash(name: str) -> bool:
    """Whether the name is read as the start of a sha256."""
    return _HASH.fullmatch(name) is not None


class VersionIndex:
    """Versions by run and number, tag, hash and stage."""

    def __init__(self, versions: Iterable[Version] = ()) -> None:
        self._runs: dict[str, dict[int, Version]] = {}
        self._in_production: set[VersionKey] = set()
        self._tags: defaultdict[str, set[VersionKey]] = defaultdict(set)
        for version in versions:
            self.put(version)

    def __iter__(self) -> Iterator[Version]:
        for versions in self._runs.values():
            yield from versions.values()

    def put(self, version: Version) -> None:
        """Add a version, or replace it."""
        self.remove(version.id)
        run_id, number = version.id
        self._runs.setdefault(run_id, {})[number] = version
        if version.record.stage == "production":
            self._in_production.add(version.id)
        for label in version.record.tags:
            self._tags[label].add(version.id)

    def remove(self, key: VersionKey) -> None:
        """Remove a version, if it exists."""
        versions = self._runs.get(key[0], {})
        version = versions.pop(key[1], None)
        if version is None:
            return
        if not versions:
            del self._runs[key[0]]
        self._in_production.discard(key)
        for label in version.record.tags:
            self._tags[label].discard(key)

    def has(self, key: VersionKey) -> bool:
        """Whether there is such a version."""
        return key[1] in self._runs.get(key[0], {})

    def get(self, key: VersionKey) -> Version:
        """Return a version; NotFound says what there is instead."""
        run_id, number = key
        versions = self._runs.get(run_id)
        if versions is None:
            raise NotFound(f"no run {run_id!r} has a version here")
        if number not in versions:
            raise NotFound(f"run {run_id} has no version {number}: {_some(sorted(versions))}")
        return versions[number]

    def of_run(self, run_id: str) -> list[Version]:
        """Return a run's versions, the latest first."""
        versions = self._runs.get(run_id, {})
        return [versions[number] for number in sorted(versions, reverse=True)]

    def newest_first(self) -> list[Version]:
        """Return all versions, the newest first."""
        return sorted(self, key=_made, reverse=True)

    def in_production(self, task: str) -> list[Version]:
        """Return a task's versions in that stage: the valid one, then leftovers of interrupted
        operations."""
        found = (self.get(key) for key in self._in_production)
        return sorted(
            (each for each in found if each.manifest.task == task), key=_promoted, reverse=True
        )

    def tasks_in_production(self) -> list[str]:
        """Return the tasks that have a version in production."""
        return sorted({self.get(key).manifest.task for key in self._in_production})

    def rollback_targets(self, task: str) -> list[Version]:
        """Return the versions that a rollback may return to, the preferred one first."""
        found = (
            each
            for each in self
            if each.manifest.task == task
            and each.record.stage == "archived"
            and each.promoted
            and not each.record.withdrawn
        )
        return sorted(found, key=_promoted, reverse=True)

    def holders(self, label: str) -> list[Version]:
        """Return the versions with a tag, the latest holder first; several only after a crash."""
        found = (self.get(key) for key in self._tags.get(label, ()))
        return sorted(found, key=lambda each: (each.record.changed_ms, *each.id), reverse=True)

    def labels(self) -> list[str]:
        """Return all tags in use."""
        return sorted(label for label, holders in self._tags.items() if holders)

    def find(self, name: str) -> Version:
        """Return the version of a name.

        Args:
            name: ``RUN:VERSION``, ``RUN`` for its latest, ``TASK@production``, ``production`` where
                one task alone has any, a tag, or at least 8 digits of a sha256.

        Raises:
            NotFound: there is none.
            ConfigError: it names several versions, or is not a name.
        """
        if ":" in name:
            run_id, _, number = name.rpartition(":")
            if _NUMBER.fullmatch(number) is None:
                raise ConfigError(f"{name!r}: a version is a number, as in {run_id or 'RUN'}:12")
            return self.get((run_id, int(number)))
        if name == "production" or "@" in name:
            return self._find_production(name)
        found = {each.id: (each, how) for how, each in self._matches(name)}
        if not found:
            raise NotFound(
                f"no version is named {name!r}: a name is RUN:VERSION, RUN, TASK{_AT}, a tag, "
                "or 8 or more digits of a sha256"
            )
        if len(found) > 1:
            which = ", ".join(f"{how} {each.name}" for each, how in list(found.values())[:_SHOWN])
            raise ConfigError(f"{name!r} names several versions: {which}; say RUN:VERSION")
        return next(iter(found.values()))[0]

    def _find_production(self, name: str) -> Version:
        tasks = self.tasks_in_production()
        if "@" in name:
            task = name.removesuffix(_AT)
            if "@" in task:
                raise ConfigError(f"{name!r}: only production follows an @, as in TASK{_AT}")
        elif len(tasks) > 1:
            which = ", ".join(f"{task}{_AT}" for task in tasks)
            raise ConfigError(f"several tasks have a version in production: say one of {which}")
        else:
            task = tasks[0] if tasks else ""
        found = self.in_production(task)
        if not found:
            there = ", ".join(tasks) or "no task has any"
            raise NotFound(f"no version of task {task!r} is in production ({there})")
        return found[0]

    def _matches(self, name: str) -> Iterator[tuple[str, Version]]:
        if looks_like_hash(name):
            yield from (("the hash of", each) for each in self._with_hash(name))
        yield from (("the tag of", each) for each in self.holders(name)[:1])
        yield from (("the latest of its run:", each) for each in self.of_run(name)[:1])

    def _with_hash(self, start: str) -> list[Version]:
        """Return one version for each hash with that start: the first with those bytes."""
        first: dict[str, Version] = {}
        for each in sorted(self, key=_made):
            if each.manifest.sha256.startswith(start):
                first.setdefault(each.manifest.sha256, each)
        return list(first.values())


def _made(version: Version) -> tuple[int, int, str]:
    return version.manifest.created_ms, version.manifest.version, version.manifest.run_id


def _promoted(version: Version) -> tuple[int, str, int]:
    return version.promoted, *version.id


def _some(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[-_SHOWN:]))
    before = len(numbers) - _SHOWN
    return f"it has {shown} and {before} before" if before > 0 else f"it has {shown}"
