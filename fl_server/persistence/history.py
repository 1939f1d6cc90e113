"""Runs that have ended: a row with a report each, read when somebody asks.

So neither a start nor the server's memory knows how many there were. Their facts are kept for a
while, for late messages and for whoever wants to know more, and then removed.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fl_server.persistence import tables
from fl_server.persistence.database import Database, sa
from fl_server.runs.record import EndedRun
from runtime.errors import Corrupt

_REMEMBERED = 1000
_reports, _runs, _facts = tables.reports, tables.runs, tables.facts


@dataclass(frozen=True)
class Listed:
    """A run in a list. ``summary`` is None where the run has no report yet."""

    run_id: str
    summary: Mapping[str, Any] | None


class RunHistory:
    """The reports of the runs that have ended. One thread uses it.

    Raises:
        JournalError: as every method.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        # what is asked of every message about a run without a flow, and changes only here
        self._facts_of: dict[str, bool | None] = {}

    def file(self, run: EndedRun, at: float) -> None:
        """Write a run's report at Unix time ``at``; one that has a report keeps it."""
        number = sa.select(_runs.c.number).where(_runs.c.run_id == run.run_id).scalar_subquery()
        known = sa.select(_reports.c.run_id).where(_reports.c.run_id == run.run_id)
        row = {
            "run_id": run.run_id,
            "number": number,
            "task": run.task[:64],
            "at": at,
            "listed": run.listed,
            "has_facts": True,
            "summary": json.dumps(run.summary),
            "document": "" if run.document is None else json.dumps(run.document),
            "speeds": json.dumps(run.speeds),
            "report": zlib.compress(json.dumps(run.report).encode()),
        }
        filed = sa.update(_runs).where(_runs.c.run_id == run.run_id).values(filed_at=at)
        self._facts_of.pop(run.run_id, None)
        with self._database.begin() as connection:
            if connection.execute(known).first() is None:
                connection.execute(sa.insert(_reports).values(row))
                connection.execute(filed)

    def has(self, run_id: str) -> bool:
        """Whether a run of this id has ended and has its report."""
        return self._has_facts(run_id) is not None

    def is_listed(self, run_id: str) -> bool:
        """Whether a run of this id has its report, and operators see it among their runs."""
        with self._database.begin() as connection:
            return bool(connection.execute(_one(run_id, _reports.c.listed)).scalar())

    def has_facts(self, run_id: str) -> bool:
        """Whether the facts of a run that has ended are still there."""
        return bool(self._has_facts(run_id))

    def _has_facts(self, run_id: str) -> bool | None:
        """Return None where no run of this id has a report."""
        if run_id not in self._facts_of:
            if len(self._facts_of) >= _REMEMBERED:
                self._facts_of.clear()
            with self._database.begin() as connection:
                found = connection.execute(_one(run_id, _reports.c.has_facts)).scalar()
            self._facts_of[run_id] = found
        return self._facts_of[run_id]

    def summary(self, run_id: str) -> Mapping[str, Any] | None:
        """Return a run in one row, None where no run of this id has a report."""
        with self._database.begin() as connection:
            text = connection.execute(_one(run_id, _reports.c.summary)).scalar()
        return None if text is None else _read(text, run_id)

    def report(self, run_id: str) -> Mapping[str, Any] | None:
        """Return all that is told of a run, None where no run of this id has a report.

        Raises:
            Corrupt: it is not as it was written.
        """
        with self._database.begin() as connection:
            packed = connection.execute(_one(run_id, _reports.c.report)).scalar()
        if packed is None:
            return None
        try:
            return _read(zlib.decompress(packed).decode(), run_id)
        except (zlib.error, UnicodeDecodeError) as error:
            raise _damaged(run_id) from error

    def listed(self, limit: int) -> list[Listed]:
        """Return the latest runs, the latest first: those without a report are of any kind."""
        with_reports = _runs.outerjoin(_reports, _reports.c.run_id == _runs.c.run_id)
        query = (
            sa.select(_runs.c.run_id, _reports.c.summary)
            .select_from(with_reports)
            .where(_reports.c.run_id.is_(None) | _reports.c.listed)
            .order_by(_runs.c.number.desc())
            .limit(limit)
        )
        with self._database.begin() as connection:
            rows = connection.execute(query).all()
        return [Listed(id_, None if text is None else _read(text, id_)) for id_, text in rows]

    def documents(self, limit: int) -> list[tuple[str, Mapping[str, Any] | None]]:
        """Return the retained documents of the latest runs that have reports, oldest first."""
        query = sa.select(_reports.c.run_id, _reports.c.document)
        with self._database.begin() as connection:
            rows = connection.execute(query.order_by(_reports.c.number.desc()).limit(limit)).all()
        return [(id_, _read(text, id_) if text else None) for id_, text in reversed(rows)]

    def speeds(self, task: str, limit: int) -> list[Mapping[str, Any]]:
        """Return what devices were measured at in the latest runs of a task, oldest first."""
        query = sa.select(_reports.c.run_id, _reports.c.speeds).where(_reports.c.task == task)
        with self._database.begin() as connection:
            rows = connection.execute(query.order_by(_reports.c.number.desc()).limit(limit)).all()
        return [_read(text, id_) for id_, text in reversed(rows)]

    def compact(self, before: float, limit: int = 10) -> int:
        """Remove the facts of some runs whose reports are older than Unix time ``before``.

        Returns:
            Of how many runs; as many as ``limit`` where there may be more.
        """
        query = sa.select(_reports.c.run_id).where(_reports.c.has_facts, _reports.c.at < before)
        self._facts_of.clear()
        with self._database.begin() as connection:
            found = list(connection.execute(query.limit(limit)).scalars())
            of_them = _reports.c.run_id.in_(found)
            connection.execute(sa.delete(_facts).where(_facts.c.run_id.in_(found)))
            connection.execute(sa.update(_reports).where(of_them).values(has_facts=False))
        return len(found)


def _one(run_id: str, column: sa.Column[Any]) -> sa.Select[Any]:
    return sa.select(column).where(_reports.c.run_id == run_id)


def _read(text: str, run_id: str) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise _damaged(run_id) from error
    if not isinstance(found, dict):
        raise _damaged(run_id)
    return found


def _damaged(run_id: str) -> Corrupt:
    return Corrupt(f"the journal holds a damaged report of run {run_id}")
