"""The journal: every run of every kind and every fact, on disk before it takes effect.

A run's state is the fold of its facts, in order; nothing here is ever updated in place but the
server's epoch. Which classes a run's plan and facts have follows from the kind of its flow.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fl_server.persistence.database import Database, JournalUnusable, read_meta, sa, write_meta
from fl_server.persistence.migration import move_canaries
from fl_server.rounds.facts import FACTS
from fl_server.rounds.model import Model
from fl_server.rounds.plan import Plan
from fl_server.runs.definition import RunDefinition
from fl_server.runs.record import AwaitedModel, FactRecord, PreparedRun, RunRecord, Vocabulary

SCHEMA_VERSION = 2
SYNC = Vocabulary(Plan, FACTS)
_metadata = sa.MetaData()
_runs = sa.Table(
    "rengo_runs",
    _metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("run_id", sa.String(64), unique=True, nullable=False),
    sa.Column("definition", sa.Text, nullable=False),
    sa.Column("plan", sa.Text, nullable=False),
    sa.Column("initial", sa.Text, nullable=False),
    sa.Column("at", sa.Float, nullable=False),
)
_facts = sa.Table(
    "rengo_facts",
    _metadata,
    sa.Column("run_id", sa.String(64), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("kind", sa.String(64), nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("at", sa.Float, nullable=False),
)
# made once: what SQLAlchemy finds out about a statement stays with it
_INSERT_FACTS = sa.insert(_facts)

_prepared = sa.Table(
    "rengo_prepared",
    _metadata,
    sa.Column("run_id", sa.String(64), primary_key=True),
    sa.Column("definition", sa.Text, nullable=False),
    sa.Column("initial", sa.Text, nullable=False),
)


class Journal:
    """The journal behind one database URL. One thread calls it.

    Args:
        url: of the database, or the path of an SQLite file.
        vocabularies: what runs hold, by the kind of their flow.

    Raises:
        ConfigError: the URL is not usable.
        JournalUnusable: another version of Rengo wrote the data, or they cannot be opened.
        JournalUnreachable: the database's server cannot be reached.
        JournalError: the disk is full.
    """

    def __init__(
        self, url: str | Path, vocabularies: Mapping[str, Vocabulary] | None = None
    ) -> None:
        self.url = url
        self.database = Database(url)
        self._begin = self.database.begin
        self._name = self.database.name
        self._numbers: dict[str, int] = {}
        self._adapters: dict[type, TypeAdapter[Any]] = {}
        self._vocabularies = dict({"sync": SYNC} if vocabularies is None else vocabularies)
        self.database.prepare(
            _metadata, "schema_version", SCHEMA_VERSION, {1: move_canaries(_runs, _facts)}
        )

    def add_vocabularies(self, vocabularies: Mapping[str, Vocabulary]) -> None:
        """Read runs of further kinds too."""
        self._vocabularies |= vocabularies

    def close(self) -> None:
        """Release the database."""
        self.database.close()

    def next_epoch(self) -> int:
        """Return the server's epoch: one more than at the last start."""
        with self._begin() as connection:
            epoch = read_meta(connection, "epoch", 0) + 1
            write_meta(connection, "epoch", epoch)
        return epoch

    def raise_epoch(self, obeyed: int) -> int:
        """Return an epoch above one that a device has obeyed, from which the next start goes on."""
        with self._begin() as connection:
            epoch = max(read_meta(connection, "epoch", 0), obeyed) + 1
            write_meta(connection, "epoch", epoch)
        return epoch

    def prepare(self, run: PreparedRun) -> None:
        """Write a run whose version 0 is awaited."""
        row = {
            "run_id": run.run_id,
            "definition": run.definition.model_dump_json(),
            "initial": json.dumps(asdict(run.awaited)),
        }
        with self.database.change() as connection:
            connection.execute(sa.insert(_prepared), row)

    def prepared(self) -> list[PreparedRun]:
        """Return the runs whose version 0 is awaited."""
        with self._begin() as connection:
            rows = connection.execute(sa.select(_prepared)).all()
        return [_prepared_run(row, self._name) for row in rows]

    def forget_prepared(self, run_id: str) -> None:
        """Remove a run that nobody submitted in time."""
        with self._begin() as connection:
            connection.execute(sa.delete(_prepared).where(_prepared.c.run_id == run_id))

    def add_run(self, record: RunRecord[Any]) -> None:
        """Write a new run, which is prepared no longer; JournalError when its id is taken."""
        row = {
            "run_id": record.run_id,
            "definition": record.definition.model_dump_json(),
            "plan": json.dumps(asdict(record.plan)),
            "initial": json.dumps(asdict(record.initial)),
            "at": record.at,
        }
        with self.database.change() as connection:
            connection.execute(sa.insert(_runs), row)
            connection.execute(sa.delete(_prepared).where(_prepared.c.run_id == record.run_id))

    def append(self, run_id: str, facts: Sequence[Any]) -> None:
        """Write facts in order, all or none; they are on disk when this returns."""
        if not facts:
            return
        number = self._next_number(run_id)
        now = time.time()
        rows = [
            {
                "run_id": run_id,
                "number": number + offset,
                "kind": type(fact).__name__,
                "body": json.dumps(asdict(fact)),
                "at": now,
            }
            for offset, fact in enumerate(facts)
        ]
        with self.database.change() as connection:
            connection.execute(_INSERT_FACTS, rows)
        self._numbers[run_id] = number + len(rows)

    def runs(self) -> list[RunRecord[Any]]:
        """Return every run, oldest first."""
        with self._begin() as connection:
            rows = connection.execute(sa.select(_runs).order_by(_runs.c.number)).all()
        return [self._run_record(row) for row in rows]

    def facts(self, run_id: str, flow: str = "sync") -> list[FactRecord]:
        """Return the facts of a run, whose flow is of the kind ``flow``, in order."""
        vocabulary = self._vocabulary(run_id, flow)
        query = sa.select(_facts).where(_facts.c.run_id == run_id).order_by(_facts.c.number)
        with self._begin() as connection:
            rows = connection.execute(query).all()
        return [FactRecord(self._fact(row, vocabulary), row.at) for row in rows]

    def _vocabulary(self, run_id: str, flow: str) -> Vocabulary:
        found = self._vocabularies.get(flow)
        if found is None:
            raise JournalUnusable(
                f"journal {self._name}: run {run_id} is of the kind {flow!r}, which this server "
                f"does not have; it has: {', '.join(sorted(self._vocabularies))}"
            )
        return found

    def _adapter(self, kind: type) -> TypeAdapter[Any]:
        if kind not in self._adapters:
            self._adapters[kind] = TypeAdapter(kind)
        return self._adapters[kind]

    def _fact(self, row: Any, vocabulary: Vocabulary) -> Any:
        kind = vocabulary.facts.get(row.kind)
        if kind is None:
            raise JournalUnusable(
                f"journal {self._name} holds an unknown fact {row.kind!r} of run {row.run_id}"
            )
        try:
            return self._adapter(kind).validate_json(row.body)
        except ValidationError as error:
            where = f"{row.run_id}, number {row.number}"
            raise JournalUnusable(
                f"journal {self._name} holds a damaged {row.kind}: {where}"
            ) from error

    def _run_record(self, row: Any) -> RunRecord[Any]:
        try:
            definition = RunDefinition.model_validate_json(row.definition)
            vocabulary = self._vocabulary(row.run_id, definition.flow)
            return RunRecord(
                row.run_id,
                definition,
                self._adapter(vocabulary.plan).validate_json(row.plan),
                _MODEL.validate_json(row.initial),
                row.at,
            )
        except ValidationError as error:
            raise _damaged(row.run_id, self._name) from error

    def _next_number(self, run_id: str) -> int:
        if run_id not in self._numbers:
            query = sa.select(sa.func.max(_facts.c.number)).where(_facts.c.run_id == run_id)
            with self._begin() as connection:
                last = connection.execute(query).scalar()
            self._numbers[run_id] = 0 if last is None else last + 1
        return self._numbers[run_id]


_MODEL = TypeAdapter(Model)
_AWAITED = TypeAdapter(AwaitedModel)


def _prepared_run(row: Any, journal: str) -> PreparedRun:
    try:
        return PreparedRun(
            row.run_id,
            RunDefinition.model_validate_json(row.definition),
            _AWAITED.validate_json(row.initial),
        )
    except ValidationError as error:
        raise _damaged(row.run_id, journal) from error


def _damaged(run_id: str, journal: str) -> JournalUnusable:
    return JournalUnusable(f"journal {journal} holds a damaged run {run_id}")
