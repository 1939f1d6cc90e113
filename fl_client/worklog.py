"""The device's journal: jobs whose work is done but not yet receipted, across power loss."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from broker.messages import Order
from fl_client.session import Job, JobKey, Outcome
from runtime.errors import ConfigError, RengoError

_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    run_id TEXT, action TEXT, round INTEGER, attempt INTEGER,
    stage TEXT NOT NULL, wire_order TEXT NOT NULL, outcome TEXT NOT NULL,
    PRIMARY KEY (run_id, action, round, attempt)
)
"""


class WorklogError(RengoError):
    """The device's journal cannot be written or read (disk full, damaged)."""


class Worklog:
    """One row a job; what is written is on disk when the call returns. One thread calls it.

    Raises:
        ConfigError: another version of Rengo wrote the file.
        WorklogError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600, exist_ok=True)
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version not in {0, _SCHEMA_VERSION}:
                raise ConfigError(
                    f"{path} was written by another version of Rengo (schema {version}, this one "
                    f"reads {_SCHEMA_VERSION}); use that version, or another data folder"
                )
            self._db.execute(_SCHEMA)
            self._db.execute(f"PRAGMA user_version={_SCHEMA_VERSION}")
        except sqlite3.Error as error:
            raise WorklogError(f"{path}: {error}") from error

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
        """Return every kept job.

        Raises:
            WorklogError: a row is damaged; the text names it.
        """
        rows = self._execute("SELECT * FROM jobs ORDER BY round, attempt", ()).fetchall()
        return [self._job(row) for row in rows]

    def _job(self, row: tuple[Any, ...]) -> Job:
        run_id, action, round_number, attempt, stage, order, outcome = row
        try:
            return Job(
                JobKey(run_id, action, round_number, attempt),
                Order.model_validate_json(order),
                stage,
                Outcome(**json.loads(outcome)),
            )
        except (ValidationError, ValueError, TypeError) as error:
            raise WorklogError(
                f"{self.path}: the row of {run_id}, round {round_number} is damaged; remove the "
                "file to start afresh (unsent results are lost)"
            ) from error

    def _execute(self, statement: str, values: tuple[Any, ...]) -> sqlite3.Cursor:
        try:
            return self._db.execute(statement, values)
        except sqlite3.Error as error:
            raise WorklogError(f"{self.path}: {error}") from error


def _key(key: JobKey) -> tuple[str, str, int, int]:
    return (key.run_id, key.action, key.round, key.attempt)
