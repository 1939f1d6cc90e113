"""The canaries in the server's database: each one's plan and its facts, on disk before they count.

Like the journal: a canary's state is the fold of its facts, and nothing is updated in place.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fl_server.deployment.canary.events import FACTS, CanaryPlan, Fact
from fl_server.persistence.database import Database, JournalUnusable, sa

SCHEMA_VERSION = 1
_metadata = sa.MetaData()
_canaries = sa.Table(
    "rengo_canaries",
    _metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("canary_id", sa.String(64), unique=True, nullable=False),
    sa.Column("plan", sa.Text, nullable=False),
    sa.Column("at", sa.Float, nullable=False),
)
_facts = sa.Table(
    "rengo_canary_facts",
    _metadata,
    sa.Column("canary_id", sa.String(64), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("kind", sa.String(64), nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("at", sa.Float, nullable=False),
)
_PLAN = TypeAdapter(CanaryPlan)
_ADAPTERS: dict[str, TypeAdapter[Any]] = {name: TypeAdapter(kind) for name, kind in FACTS.items()}


@dataclass(frozen=True)
class CanaryRecord:
    """A canary as it stands in the database. ``at`` is the wall clock's, for people only."""

    plan: CanaryPlan
    facts: tuple[Fact, ...]
    at: float


class CanaryLog:
    """One thread calls it.

    Raises:
        JournalUnusable: another version of Rengo wrote it, or it is damaged.
        JournalError: as every method.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._numbers: dict[str, int] = {}
        database.prepare(_metadata, "canary_version", SCHEMA_VERSION)

    def begin(self, plan: CanaryPlan) -> float:
        """Write a new canary; return when, by the wall clock."""
        now = time.time()
        row = {"canary_id": plan.canary_id, "plan": json.dumps(asdict(plan)), "at": now}
        with self._database.begin() as connection:
            connection.execute(sa.insert(_canaries), row)
        return now

    def append(self, canary_id: str, facts: Sequence[Fact]) -> None:
        """Write facts in order, all or none; they are on disk when this returns."""
        if not facts:
            return
        number, now = self._numbers.get(canary_id, 0), time.time()
        rows = [
            {
                "canary_id": canary_id,
                "number": number + offset,
                "kind": type(fact).__name__,
                "body": json.dumps(asdict(fact)),
                "at": now,
            }
            for offset, fact in enumerate(facts)
        ]
        with self._database.begin() as connection:
            connection.execute(sa.insert(_facts), rows)
        self._numbers[canary_id] = number + len(rows)

    def canaries(self) -> list[CanaryRecord]:
        """Return every canary with its facts, oldest first."""
        facts: dict[str, list[Fact]] = {}
        with self._database.begin() as connection:
            rows = connection.execute(sa.select(_canaries).order_by(_canaries.c.number)).all()
            query = sa.select(_facts).order_by(_facts.c.canary_id, _facts.c.number)
            for row in connection.execute(query):
                facts.setdefault(row.canary_id, []).append(self._fact(row))
        self._numbers = {canary_id: len(known) for canary_id, known in facts.items()}
        return [
            CanaryRecord(self._plan(row), tuple(facts.get(row.canary_id, ())), row.at)
            for row in rows
        ]

    def _plan(self, row: Any) -> CanaryPlan:
        try:
            return _PLAN.validate_json(row.plan)
        except ValidationError as error:
            raise JournalUnusable(f"{self._where(row)} is damaged") from error

    def _fact(self, row: Any) -> Fact:
        adapter = _ADAPTERS.get(row.kind)
        if adapter is None:
            raise JournalUnusable(f"{self._where(row)} holds an unknown fact {row.kind!r}")
        try:
            fact: Fact = adapter.validate_json(row.body)
        except ValidationError as error:
            where = f"{self._where(row)}, number {row.number}"
            raise JournalUnusable(f"{where}: a damaged {row.kind}") from error
        return fact

    def _where(self, row: Any) -> str:
        return f"journal {self._database.name}: canary {row.canary_id}"
