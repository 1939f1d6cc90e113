"""The journal's tables, and the digests that tie their rows together.

A run's digest covers all that decides it; that of each fact covers the fact and the digest before,
the run's for the first one. So a row that was changed, removed or put in by somebody else shows.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import astuple, dataclass
from typing import Any

from fl_server.persistence.database import sa

metadata = sa.MetaData()
runs = sa.Table(
    "rengo_runs",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("run_id", sa.String(64), unique=True, nullable=False),
    sa.Column("definition", sa.Text, nullable=False),
    sa.Column("plan", sa.Text, nullable=False),
    sa.Column("initial", sa.Text, nullable=False),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("digest", sa.String(64), nullable=False, server_default=""),
    # when its report was written; a start reads the runs that have none
    sa.Column("filed_at", sa.Float, nullable=True),
)
runs_by_filing = sa.Index("rengo_runs_by_filing", runs.c.filed_at)
facts = sa.Table(
    "rengo_facts",
    metadata,
    sa.Column("run_id", sa.String(64), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("kind", sa.String(64), nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("digest", sa.String(64), nullable=False, server_default=""),
)
prepared = sa.Table(
    "rengo_prepared",
    metadata,
    sa.Column("run_id", sa.String(64), primary_key=True),
    sa.Column("definition", sa.Text, nullable=False),
    sa.Column("initial", sa.Text, nullable=False),
    sa.Column("digest", sa.String(64), nullable=False, server_default=""),
)
reports = sa.Table(
    "rengo_reports",
    metadata,
    sa.Column("run_id", sa.String(64), primary_key=True),
    # of its row among the runs
    sa.Column("number", sa.Integer, unique=True, nullable=False),
    sa.Column("task", sa.String(64), nullable=False),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("listed", sa.Boolean, nullable=False),
    sa.Column("has_facts", sa.Boolean, nullable=False),
    sa.Column("summary", sa.Text, nullable=False),
    sa.Column("document", sa.Text, nullable=False),
    sa.Column("speeds", sa.Text, nullable=False),
    # JSON, compressed: it names every device of every round
    sa.Column("report", sa.LargeBinary, nullable=False),
    sa.Index("rengo_reports_by_task", "task", "number"),
    sa.Index("rengo_reports_by_age", "has_facts", "at"),
)


@dataclass(frozen=True)
class RunRow:
    """What decides a run."""

    run_id: str
    definition: str
    plan: str
    initial: str
    at: float

    @property
    def digest(self) -> str:
        """Over all of it."""
        return _digest(*astuple(self))


@dataclass(frozen=True)
class PreparedRow:
    """What decides a run whose version 0 is awaited."""

    run_id: str
    definition: str
    initial: str

    @property
    def digest(self) -> str:
        """Over all of it."""
        return _digest(*astuple(self))


@dataclass(frozen=True)
class FactRow:
    """One fact of a run."""

    run_id: str
    number: int
    kind: str
    body: str
    at: float

    def digest(self, before: str) -> str:
        """Return what ties it to the fact before it, or to its run: ``before`` is the digest."""
        return _digest(before, *astuple(self))


def run_row(row: sa.Row[Any]) -> RunRow:
    """Return what the digest of a row covers."""
    return RunRow(row.run_id, row.definition, row.plan, row.initial, row.at)


def prepared_row(row: sa.Row[Any]) -> PreparedRow:
    """Return what the digest of a row covers."""
    return PreparedRow(row.run_id, row.definition, row.initial)


def fact_row(row: sa.Row[Any]) -> FactRow:
    """Return what the digest of a row covers."""
    return FactRow(row.run_id, row.number, row.kind, row.body, row.at)


def _digest(*content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
