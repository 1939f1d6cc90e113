"""A project's versions, and the names by which people find them: on the disk, not in memory.

A site may have tens of thousands of versions, of which a few are asked for. SQLite keeps them in a
temporary file that no other process sees, and a part of it in memory. The store is the truth: the
file is made anew at each scan.
"""

from __future__ import annotations

import errno
import re
import sqlite3
import weakref
from collections.abc import Iterator
from typing import Any

from runtime.errors import ConfigError, NotFound
from runtime.sqlite import is_disk_trouble
from storage.versions.manifest import Manifest, Record
from storage.versions.version import Version, VersionKey, looks_like_hash

_AT = "@production"
_NUMBER = re.compile(r"[0-9]{1,15}")
_SHOWN = 5
_SCHEMA = """
    PRAGMA journal_mode = OFF;
    PRAGMA synchronous = OFF;
    PRAGMA cache_size = -2048;
    CREATE TABLE versions (
        run_id TEXT NOT NULL, number INTEGER NOT NULL, task TEXT NOT NULL, sha256 TEXT NOT NULL,
        created_ms INTEGER NOT NULL, changed_ms INTEGER NOT NULL, stage TEXT NOT NULL,
        promoted INTEGER NOT NULL, withdrawn INTEGER NOT NULL,
        manifest TEXT NOT NULL, record TEXT NOT NULL, UNIQUE (run_id, number)
    );
    CREATE INDEX by_age ON versions (created_ms, number, run_id);
    CREATE INDEX by_task ON versions (task, stage, promoted);
    CREATE INDEX by_hash ON versions (sha256);
    CREATE TABLE tags (
        label TEXT NOT NULL, run_id TEXT NOT NULL, number INTEGER NOT NULL,
        PRIMARY KEY (label, run_id, number)
    ) WITHOUT ROWID;
"""
_COLUMNS = "manifest, record"
_MADE = "created_ms {0}, number {0}, versions.run_id {0}"
_LATEST_PROMOTED = "promoted DESC, run_id DESC, number DESC"


class VersionIndex:
    """Versions by run and number, tag, hash and stage. One thread at a time uses it.

    Raises:
        OSError: as every method: the disk of temporary files is full.
    """

    def __init__(self) -> None:
        # "": a file of its own, which SQLite removes
        self._db = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._db.executescript(_SCHEMA)
        self._closing = weakref.finalize(self, self._db.close)

    def close(self) -> None:
        """Remove it from the disk; otherwise this is done when nobody holds it any more."""
        self._closing()

    def put(self, version: Version) -> None:
        """Add a version, or replace it."""
        self.remove(version.id)
        manifest, record = version.manifest, version.record
        row = (
            *(*version.id, manifest.task, manifest.sha256, manifest.created_ms, record.changed_ms),
            *(record.stage, version.promoted, record.withdrawn),
            *(manifest.model_dump_json(), record.model_dump_json()),
        )
        self._do(f"INSERT INTO versions VALUES ({', '.join('?' * len(row))})", *row)  # noqa: S608
        for label in record.tags:
            self._do("INSERT OR IGNORE INTO tags VALUES (?, ?, ?)", label, *version.id)

    def remove(self, key: VersionKey) -> None:
        """Remove a version, if it exists."""
        self._do("DELETE FROM versions WHERE run_id = ? AND number = ?", *key)
        self._do("DELETE FROM tags WHERE run_id = ? AND number = ?", *key)

    def has(self, key: VersionKey) -> bool:
        """Whether there is such a version."""
        return bool(self._do("SELECT 1 FROM versions WHERE run_id = ? AND number = ?", *key))

    def get(self, key: VersionKey) -> Version:
        """Return a version; NotFound says what there is instead."""
        found = self._versions("WHERE run_id = ? AND number = ?", *key)
        if found:
            return found[0]
        run_id, number = key
        rows = self._do("SELECT number FROM versions WHERE run_id = ? ORDER BY number", run_id)
        if not rows:
            raise NotFound(f"no run {run_id!r} has a version here")
        raise NotFound(f"run {run_id} has no version {number}: {_some([each for (each,) in rows])}")

    def of_run(self, run_id: str) -> list[Version]:
        """Return a run's versions, the latest first."""
        return self._versions("WHERE run_id = ? ORDER BY number DESC", run_id)

    def newest_first(self) -> list[Version]:
        """Return all versions, the newest first."""
        return self._versions(f"ORDER BY {_MADE.format('DESC')}")

    def runs(self) -> list[str]:
        """Return the ids of the runs that have versions."""
        return self._texts("SELECT DISTINCT run_id FROM versions ORDER BY run_id")

    def tasks(self) -> list[str]:
        """Return the tasks that have versions."""
        return self._texts("SELECT DISTINCT task FROM versions ORDER BY task")

    def in_production(self, task: str) -> list[Version]:
        """Return a task's versions in that stage: the valid one, then leftovers of interrupted
        operations."""
        where = "WHERE task = ? AND stage = 'production'"
        return self._versions(f"{where} ORDER BY {_LATEST_PROMOTED}", task)

    def tasks_in_production(self) -> list[str]:
        """Return the tasks that have a version in production."""
        return self._texts(
            "SELECT DISTINCT task FROM versions WHERE stage = 'production' ORDER BY task"
        )

    def rollback_targets(self, task: str) -> list[Version]:
        """Return the versions that a rollback may return to, the preferred one first."""
        where = "WHERE task = ? AND stage = 'archived' AND promoted > 0 AND NOT withdrawn"
        return self._versions(f"{where} ORDER BY {_LATEST_PROMOTED}", task)

    def latest_promotion(self) -> int:
        """Return the highest count of promotions, 0 where there was none."""
        ((highest,),) = self._do("SELECT MAX(promoted) FROM versions")
        return highest or 0

    def holders(self, label: str) -> list[Version]:
        """Return the versions with a tag, the latest holder first; several only after a crash."""
        return self._versions(
            "JOIN tags USING (run_id, number) WHERE label = ? "
            "ORDER BY changed_ms DESC, run_id DESC, number DESC",
            label,
        )

    def labels(self) -> list[str]:
        """Return all tags in use."""
        return self._texts("SELECT DISTINCT label FROM tags ORDER BY label")

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
        # no digit of a hash sorts behind "f"
        where = f"WHERE sha256 >= ? AND sha256 < ? ORDER BY {_MADE.format('ASC')}"
        for each in self._versions(where, start, f"{start}g"):
            first.setdefault(each.manifest.sha256, each)
        return list(first.values())

    def _versions(self, which: str, *values: object) -> list[Version]:
        rows = self._do(f"SELECT {_COLUMNS} FROM versions {which}", *values)  # noqa: S608
        return [
            Version(Manifest.model_validate_json(manifest), Record.model_validate_json(record))
            for manifest, record in rows
        ]

    def _texts(self, query: str) -> list[str]:
        return [text for (text,) in self._do(query)]

    def _do(self, statement: str, *values: object) -> list[Any]:
        try:
            return self._db.execute(statement, values).fetchall()
        except sqlite3.OperationalError as error:
            if is_disk_trouble(error):
                text = "the disk of temporary files is full"
                raise OSError(errno.ENOSPC, text) from error
            raise


def _some(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[-_SHOWN:]))
    before = len(numbers) - _SHOWN
    return f"it has {shown} and {before} before" if before > 0 else f"it has {shown}"
