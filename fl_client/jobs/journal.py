"""The device's journal: jobs whose work is done and not yet receipted. It survives power loss."""

from __future__ import annotations

import json
import logging
import sqlite3
from dataclasses import asdict, astuple, fields, replace
from pathlib import Path
from typing import Any

from broker.wire.messages import Order
from fl_client.session.events import (
    Job,
    JobKey,
    JobOutcome,
    Stage,
)
from runtime.errors import ConfigError, RengoError
from runtime.sqlite import (
    is_damage_at_open,
    is_disk_trouble,
    lenient_text,
    require_sound,
    require_tables,
    row_checksum,
    schema_version,
    set_schema_version,
)

_LOG = logging.getLogger(__name__)
_SCHEMA_VERSION = 3
# rows have checksums since, and the version its stamp
_FIRST_STAMPED = 3
_SCHEMA = """
CREATE TABLE jobs (
    run_id TEXT, action TEXT, round INTEGER, attempt INTEGER, phase TEXT, seq INTEGER,
    stage TEXT NOT NULL, wire_order TEXT NOT NULL, outcome TEXT NOT NULL, payload BLOB NOT NULL,
    crc INTEGER NOT NULL,
    PRIMARY KEY (run_id, action, round, attempt, phase, seq)
)
"""
_INSERT = "INSERT OR REPLACE INTO jobs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_EARLIER = {
    # before there were exchanges
    1: "SELECT run_id, action, round, attempt, '', 0, stage, wire_order, outcome, x'' FROM earlier",
    2: "SELECT * FROM earlier",
}


class JobJournalError(RengoError):
    """The device's journal cannot be written or read (disk full)."""


class JobJournalDamaged(JobJournalError):
    """The file is damaged and stays so."""


class JobJournalUnusable(JobJournalError, ConfigError):
    """The file is of a later version or cannot be opened: a person must mend it."""


class JobJournal:
    """One row a job; what is written outlives this process at once. One thread calls it.

    A file of an earlier version is brought to this one's schema when it is opened.

    Raises:
        JobJournalDamaged: the file is damaged.
        JobJournalUnusable: a later version of Rengo wrote the file, or it cannot be opened.
        JobJournalError: the disk is full.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
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
        # a damaged text is read: ``jobs`` drops its row
        self._db.text_factory = lenient_text
        try:
            require_sound(self._db)
            # of a new file: every change writes whole pages
            self._db.execute("PRAGMA page_size=1024")
            version = schema_version(self._db, _FIRST_STAMPED)
            if not 0 <= version <= _SCHEMA_VERSION:
                raise JobJournalUnusable(
                    f"{self.path} was written by another version of Rengo (schema {version}, this "
                    f"one reads {_SCHEMA_VERSION}); use that version, or another data folder"
                )
            self._db.execute("PRAGMA journal_mode=WAL")
            # A power cut may lose the latest rows, but never the file. The server asks again for
            # what it has not acknowledged, and each forced write wears a flash card.
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._bring_up_to_date(version)
            require_tables(self._db, _SCHEMA)
        except (sqlite3.Error, UnicodeDecodeError) as error:
            if is_disk_trouble(error):
                raise JobJournalError(f"{self.path}: {error}; is the disk full?") from error
            if is_damage_at_open(error, self.path):
                raise JobJournalDamaged(f"{self.path}: {error}") from error
            raise JobJournalUnusable(f"{self.path}: {error}") from error

    def _bring_up_to_date(self, version: int) -> None:
        """Make the table, or make it anew with what it holds; in one transaction."""
        if version == _SCHEMA_VERSION:
            return
        self._db.execute("BEGIN IMMEDIATE")
        try:
            if version in _EARLIER:
                self._db.execute("ALTER TABLE jobs RENAME TO earlier")
            self._db.execute(_SCHEMA)
            if version in _EARLIER:
                rows = self._db.execute(f"{_EARLIER[version]} ORDER BY rowid").fetchall()
                self._db.executemany(_INSERT, [(*row, row_checksum(*row)) for row in rows])
                self._db.execute("DROP TABLE earlier")
            set_schema_version(self._db, _SCHEMA_VERSION)
            self._db.execute("COMMIT")
        except sqlite3.Error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def close(self) -> None:
        """Release the file."""
        self._db.close()

    def store(self, job: Job) -> None:
        """Write a job's stage and outcome; an order's payload, which was used up, is left out."""
        outcome = {} if job.outcome is None else asdict(job.outcome)
        payload = outcome.pop("payload", b"")
        order = job.order.model_copy(update={"payload": b""}).model_dump_json()
        row = (*astuple(job.key), job.stage, order, json.dumps(outcome), payload)
        self._execute(_INSERT, (*row, row_checksum(*row)))

    def remove(self, key: JobKey) -> None:
        """Remove a job; nothing happens when it is not there."""
        self._execute(
            "DELETE FROM jobs WHERE (run_id, action, round, attempt, phase, seq)"
            " = (?, ?, ?, ?, ?, ?)",
            astuple(key),
        )

    def jobs(self) -> list[Job]:
        """Return every stored job; a damaged row is removed, and its job is done again."""
        rows = self._execute(
            "SELECT rowid, * FROM jobs ORDER BY round, attempt, rowid", ()
        ).fetchall()
        return [job for number, *row in rows if (job := self._job(number, row)) is not None]

    def _job(self, number: int, row: list[Any]) -> Job | None:
        # a start seldom finds a job
        from pydantic import TypeAdapter  # noqa: PLC0415

        *written, crc = row
        *key, stage, order, outcome, payload = written
        stages: TypeAdapter[Stage] = TypeAdapter(Stage)
        names = [each.name for each in fields(JobKey)]
        try:
            if crc != row_checksum(*written):
                raise ValueError("its checksum is wrong")
            if not isinstance(payload, bytes):
                raise ValueError("its payload is not bytes")
            job = Job(
                TypeAdapter(JobKey).validate_python(dict(zip(names, key, strict=True))),
                Order.model_validate_json(order),
                stages.validate_python(stage),
                replace(TypeAdapter(JobOutcome).validate_json(outcome), payload=payload),
            )
            if job.key != JobKey.of(job.order):
                raise ValueError("its order is of another job")
        except ValueError as error:
            what = f"{self.path}: the row of {key[0]}, round {key[2]} is damaged"
            _LOG.error("%s and removed; the server asks again for what it lacks: %s", what, error)
            self._execute("DELETE FROM jobs WHERE rowid=?", (number,))
            return None
        return job

    def _execute(self, statement: str, values: tuple[Any, ...]) -> sqlite3.Cursor:
        try:
            return self._db.execute(statement, values)
        except sqlite3.Error as error:
            raise JobJournalError(f"{self.path}: {error}") from error
