"""The journal: every run of every kind and every fact, on disk before it takes effect.

A run's state is the fold of its facts, in order; nothing here is ever updated in place but the
server's epoch. Which classes a run's plan and facts have follows from the kind of its flow. A run
whose rows are not as they were written is :class:`DamagedRun`; all others go on.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fl_server.persistence import tables
from fl_server.persistence.database import Database, JournalUnusable, read_meta, sa, write_meta
from fl_server.persistence.migration import MIGRATIONS
from fl_server.rounds.facts import FACTS
from fl_server.rounds.model import Model
from fl_server.rounds.plan import Plan
from fl_server.runs.definition import RunDefinition
from fl_server.runs.record import AwaitedModel, FactRecord, PreparedRun, RunRecord, Vocabulary
from runtime.errors import NotFound, RengoError

_LOG = logging.getLogger(__name__)
SCHEMA_VERSION = 4
# how many values one statement names: SQLite took 999 at most until 2020
_BATCH = 500
SYNC = Vocabulary(Plan, FACTS)
# made once: what SQLAlchemy finds out about a statement stays with it
_INSERT_FACTS = sa.insert(tables.facts)


class DamagedRun(RengoError):
    """A run's rows were changed since they were written: it cannot go on."""

    def __init__(self, run_id: str, what: str) -> None:
        super().__init__(f"the journal holds a damaged run {run_id}: {what}")


@dataclass(frozen=True)
class _Tail:
    """Where a run's next fact goes: its number, and the digest that it follows."""

    number: int
    digest: str


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
        self._tails: dict[str, _Tail] = {}
        self._adapters: dict[type, TypeAdapter[Any]] = {}
        self._vocabularies = dict({"sync": SYNC} if vocabularies is None else vocabularies)
        self.database.prepare(tables.metadata, "schema_version", SCHEMA_VERSION, MIGRATIONS)

    def add_vocabularies(self, vocabularies: Mapping[str, Vocabulary]) -> None:
        """Read runs of further kinds too."""
        self._vocabularies |= vocabularies

    def close(self) -> None:
        """Release the database."""
        self.database.close()

    def epoch(self) -> int:
        """Return the epoch of the latest start, 0 before the first."""
        with self._begin() as connection:
            return read_meta(connection, "epoch", 0)

    def next_epoch(self, above: int = 0) -> int:
        """Return the server's epoch: one more than at the last start.

        Args:
            above: what others have seen; an older journal must not go below.
        """
        with self._begin() as connection:
            epoch = max(read_meta(connection, "epoch", 0), above) + 1
            write_meta(connection, "epoch", epoch)
        return epoch

    def unknown(self, run_ids: Iterable[str]) -> list[str]:
        """Return those of some runs that were never here."""
        wanted = sorted(set(run_ids))
        known: set[str] = set()
        with self._begin() as connection:
            for start in range(0, len(wanted), _BATCH):
                some = tables.runs.c.run_id.in_(wanted[start : start + _BATCH])
                known.update(
                    connection.execute(sa.select(tables.runs.c.run_id).where(some)).scalars()
                )
        return [run_id for run_id in wanted if run_id not in known]

    def prepare(self, run: PreparedRun) -> None:
        """Write a run whose version 0 is awaited."""
        row = tables.PreparedRow(
            run.run_id, run.definition.model_dump_json(), json.dumps(asdict(run.awaited))
        )
        with self.database.change() as connection:
            connection.execute(sa.insert(tables.prepared), {**vars(row), "digest": row.digest})

    def prepared(self) -> list[PreparedRun]:
        """Return the runs whose version 0 is awaited; one that is damaged is removed."""
        with self._begin() as connection:
            rows = connection.execute(sa.select(tables.prepared)).all()
        found = []
        for row in rows:
            run = _prepared_run(row)
            if run is None:
                _LOG.error(
                    "run %s, whose upload is awaited, is damaged: submit it anew", row.run_id
                )
                self.forget_prepared(row.run_id)
            else:
                found.append(run)
        return found

    def forget_prepared(self, run_id: str) -> None:
        """Remove a run that nobody submitted in time."""
        with self._begin() as connection:
            connection.execute(sa.delete(tables.prepared).where(tables.prepared.c.run_id == run_id))

    def add_run(self, record: RunRecord[Any]) -> None:
        """Write a new run, which is prepared no longer; JournalError when its id is taken."""
        row = tables.RunRow(
            record.run_id,
            record.definition.model_dump_json(),
            json.dumps(asdict(record.plan)),
            json.dumps(asdict(record.initial)),
            record.at,
        )
        prepared = tables.prepared
        with self.database.change() as connection:
            connection.execute(sa.insert(tables.runs), {**vars(row), "digest": row.digest})
            connection.execute(sa.delete(prepared).where(prepared.c.run_id == record.run_id))

    def append(self, run_id: str, facts: Sequence[Any]) -> None:
        """Write facts in order, all or none; they are on disk when this returns."""
        if not facts:
            return
        tail = self._tail(run_id)
        number, digest = tail.number, tail.digest
        now = time.time()
        rows = []
        for fact in facts:
            kind, body = type(fact).__name__, json.dumps(asdict(fact))
            row = tables.FactRow(run_id, number, kind, body, now)
            number, digest = number + 1, row.digest(digest)
            rows.append({**vars(row), "digest": digest})
        with self.database.change() as connection:
            connection.execute(_INSERT_FACTS, rows)
        self._tails[run_id] = _Tail(number, digest)

    def unfiled(self) -> list[str]:
        """Return the ids of the runs that go on, or whose report is not written, oldest first."""
        runs = tables.runs
        query = sa.select(runs.c.run_id).where(runs.c.filed_at.is_(None)).order_by(runs.c.number)
        with self._begin() as connection:
            return list(connection.execute(query).scalars())

    def record(self, run_id: str) -> RunRecord[Any]:
        """Return what a run was begun with.

        Raises:
            NotFound: there is no such run.
            DamagedRun: the row is not as it was written.
        """
        with self._begin() as connection:
            row = connection.execute(_run(run_id)).first()
        if row is None:
            raise NotFound(f"no run {run_id!r}")
        if row.digest != tables.run_row(row).digest:
            raise DamagedRun(run_id, "its definition, plan or first model was changed")
        return self._run_record(row)

    def facts(self, run_id: str, flow: str = "sync") -> list[FactRecord]:
        """Return the facts of a run, whose flow is of the kind ``flow``, in order.

        Raises:
            DamagedRun: a fact is missing or is not as it was written.
        """
        vocabulary = self._vocabulary(run_id, flow)
        facts = tables.facts
        query = sa.select(facts).where(facts.c.run_id == run_id).order_by(facts.c.number)
        with self._begin() as connection:
            digest = _digest_of(connection, run_id)
            rows = connection.execute(query).all()
        for row in rows:
            digest = tables.fact_row(row).digest(digest)
            if digest != row.digest:
                raise DamagedRun(run_id, f"fact {row.number} or the one before it was changed")
        return [FactRecord(self._fact(row, vocabulary), row.at) for row in rows]

    def forget(self, run_id: str) -> None:
        """Hold nothing in memory of a run that has ended."""
        self._tails.pop(run_id, None)

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
            raise DamagedRun(row.run_id, f"its fact {row.number} is no {row.kind}") from error

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
            raise DamagedRun(row.run_id, f"its row is no run: {error}") from error

    def _tail(self, run_id: str) -> _Tail:
        if run_id not in self._tails:
            facts = tables.facts
            query = sa.select(facts).where(facts.c.run_id == run_id)
            with self._begin() as connection:
                last = connection.execute(query.order_by(facts.c.number.desc()).limit(1)).first()
                first = _digest_of(connection, run_id)
            tail = _Tail(0, first) if last is None else _Tail(last.number + 1, last.digest)
            self._tails[run_id] = tail
        return self._tails[run_id]


_MODEL = TypeAdapter(Model)
_AWAITED = TypeAdapter(AwaitedModel)


def _run(run_id: str) -> sa.Select[Any]:
    return sa.select(tables.runs).where(tables.runs.c.run_id == run_id)


def _digest_of(connection: sa.Connection, run_id: str) -> str:
    """Return the digest that a run's first fact follows."""
    query = sa.select(tables.runs.c.digest).where(tables.runs.c.run_id == run_id)
    return str(connection.execute(query).scalar() or "")


def _prepared_run(row: Any) -> PreparedRun | None:
    """Return what a row says, None where it is not as it was written."""
    if row.digest != tables.prepared_row(row).digest:
        return None
    try:
        return PreparedRun(
            row.run_id,
            RunDefinition.model_validate_json(row.definition),
            _AWAITED.validate_json(row.initial),
        )
    except ValidationError:
        return None
