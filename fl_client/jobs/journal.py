"""The device's journal: jobs whose work is done but not yet receipted, across power loss."""

from __future__ import annotations

import json
import logging
import sqlite3
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from broker.wire.messages import Order
from fl_client.session.events import (
    Job,
    JobKey,
    Outcome,
    Stage,
)
from runtime.errors import ConfigError, RengoError
from runtime.sqlite import is_damage, is_disk_trouble, require_sound

_LOG = logging.getLogger(__name__)
_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    run_id TEXT, action TEXT, round INTEGER, attempt INTEGER,
    stage TEXT NOT NULL, wire_order TEXT NOT NULL, outcome TEXT NOT NULL,
    PRIMARY KEY (run_id, action, round, attempt)
)
"""


class JobJournalError(RengoError):
    """The device's journal cannot be written or read (disk full)."""


class JobJournalDamaged(JobJournalError):
    """The file is damaged: it is of no use, nor will be."""


class JobJournalUnusable(JobJournalError, ConfigError):
    """The file is of another version or not to be opened: a person must mend it."""


class JobJournal:
    """One row a job; what is written outlives this process at once. One thread calls it.

    Raises:
        WorklogDamaged: the file is damaged.
        WorklogUnusable: another version of Rengo wrote the file, or it cannot be opened.
        WorklogError: the disk is full.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600, exist_ok=True)
            self._db = sqlite3.connect(path, isolation_level=None)
        except OSError as error:
            raise JobJournalUnusable(f"{path} cannot be opened: {error.strerror}") from error
        try:
            self._open()
        except BaseException:
            self._db.close()
            raise

    def _open(self) -> None:
        # a sound file may have a page that lost its content; such a row is no job, see ``jobs``
        self._db.text_factory = partial(str, encoding="utf-8", errors="replace")
        try:
            require_sound(self._db)
            # of a new file: every change writes whole pages
            self._db.execute("PRAGMA page_size=1024")
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version not in {0, _SCHEMA_VERSION}:
                raise JobJournalUnusable(
                    f"{self.path} was written by another version of Rengo (schema {version}, this "
                    f"one reads {_SCHEMA_VERSION}); use that version, or another data folder"
                )
            self._db.execute("PRAGMA journal_mode=WAL")
            # a power cut may cost the latest rows, never the file: the server asks again for what
            # it has not acknowledged, and cards wear
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute(_SCHEMA)
            self._db.execute(f"PRAGMA user_version={_SCHEMA_VERSION}")
        except sqlite3.Error as error:
            if is_disk_trouble(error):
                raise JobJournalError(f"{self.path}: {error}; is the disk full?") from error
            if is_damage(error):
                raise JobJournalDamaged(f"{self.path}: {error}") from error
            raise JobJournalUnusable(f"{self.path}: {error}") from error

    def close(self) -> None:
        """Release the file."""
        self._db.close()

    def keep(self, job: Job) -> None:
        """Write a job's stage and outcome."""
        outcome = {} if job.outcome is None else asdict(job.outcome)
        row = (*_key(job.key), job.stage, job.order.model_dump_json(), json.dumps(outcome))
        self._execute("INSERT OR REPLACE INTO jobs VALUES (?, ?, ?, ?, ?, ?, ?)", row)

    def forget(self, key: JobKey) -> None:
        """Remove a job; nothing happens when it is not there."""
        self._execute(
            "DELETE FROM jobs WHERE run_id=? AND action=? AND round=? AND attempt=?", _key(key)
        )

    def jobs(self) -> list[Job]:
        """Return every kept job; a row that makes none is removed, and its job done again."""
        rows = self._execute("SELECT rowid, * FROM jobs ORDER BY round, attempt", ()).fetchall()
        return [job for number, *row in rows if (job := self._job(number, row)) is not None]

    def _job(self, number: int, row: list[Any]) -> Job | None:
        # for what a start finds of an earlier one: seldom anything
        from pydantic import TypeAdapter  # noqa: PLC0415

        run_id, action, round_number, attempt, stage, order, outcome = row
        stages: TypeAdapter[Stage] = TypeAdapter(Stage)
        try:
            key = {"run_id": run_id, "action": action, "round": round_number, "attempt": attempt}
            job = Job(
                TypeAdapter(JobKey).validate_python(key),
                Order.model_validate_json(order),
                stages.validate_python(stage),
                TypeAdapter(Outcome).validate_json(outcome),
            )
            if job.key != JobKey.of(job.order):
                raise ValueError("its order is another one's")
        except ValueError as error:
            what = f"{self.path}: the row of {run_id}, round {round_number} is damaged"
            _LOG.error("%s and removed; the server asks again for what it lacks: %s", what, error)
            self._execute("DELETE FROM jobs WHERE rowid=?", (number,))
            return None
        return job

    def _execute(self, statement: str, values: tuple[Any, ...]) -> sqlite3.Cursor:
        try:
            return self._db.execute(statement, values)
        except sqlite3.Error as error:
            raise JobJournalError(f"{self.path}: {error}") from error


def _key(key: JobKey) -> tuple[str, str, int, int]:
    return (key.run_id, key.action, key.round, key.attempt)
