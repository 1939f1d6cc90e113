"""The journal: every run and every fact, on disk before it takes effect.

SQLite (WAL, synchronous=FULL) by default, PostgreSQL by URL. A run's state is the fold of its
facts, in order; nothing here is ever updated in place but the server's epoch.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fl_server.definition import RunDefinition
from fl_server.events import FACTS, Fact, Model, Plan
from runtime.errors import ConfigError, MissingExtra, RengoError, Unavailable
from runtime.sqlite import is_disk_trouble

try:
    import sqlalchemy as sa
    from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError
except ImportError as error:
    raise MissingExtra("sqlalchemy", "server") from error

SCHEMA_VERSION = 1
_CONNECT_S = 10
_metadata = sa.MetaData()
_meta = sa.Table(
    "rengo_meta",
    _metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("value", sa.BigInteger, nullable=False),
)
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

_prepared = sa.Table(
    "rengo_prepared",
    _metadata,
    sa.Column("run_id", sa.String(64), primary_key=True),
    sa.Column("definition", sa.Text, nullable=False),
    sa.Column("initial", sa.Text, nullable=False),
)


class JournalError(RengoError):
    """The journal cannot be written or read: the server must stop rather than forget."""


class JournalUnusable(JournalError, ConfigError):
    """It is damaged, of another version or not to be opened: a person must mend it."""


class JournalUnreachable(JournalError, Unavailable):
    """The database's server cannot be reached or refuses the credentials."""


@dataclass(frozen=True)
class RunRecord:
    """A journalled run. ``at`` is the wall clock's Unix time, for people only."""

    run_id: str
    definition: RunDefinition
    plan: Plan
    initial: Model
    at: float


@dataclass(frozen=True)
class PreparedRun:
    """A run whose version 0 is awaited."""

    run_id: str
    definition: RunDefinition
    initial: Model


@dataclass(frozen=True)
class FactRecord:
    """A journalled fact with the wall clock's Unix time, for people only."""

    fact: Fact
    at: float


class Journal:
    """The journal behind one database URL. One thread calls it.

    Raises:
        ConfigError: the URL is not usable.
        JournalUnusable: another version of Rengo wrote the data, or they cannot be opened.
        JournalUnreachable: the database's server cannot be reached.
        JournalError: the disk is full.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._engine = _engine(url)
        self._numbers: dict[str, int] = {}
        try:
            _metadata.create_all(self._engine)
            self._check_version()
        except DBAPIError as error:
            self._engine.dispose()
            if self._engine.dialect.name == "sqlite" and not is_disk_trouble(error.orig):
                raise JournalUnusable(f"journal {self._name}: {error.orig}") from error
            raise _error(error, self._name) from error
        except ConfigError:
            self._engine.dispose()
            raise

    @property
    def _name(self) -> str:
        return self._engine.url.render_as_string(hide_password=True)

    def close(self) -> None:
        """Release the database."""
        self._engine.dispose()

    def next_epoch(self) -> int:
        """Return the server's epoch: one more than at the last start."""
        with self._begin() as connection:
            epoch = _read_meta(connection, "epoch", 0) + 1
            _write_meta(connection, "epoch", epoch)
        return epoch

    def prepare(self, run: PreparedRun) -> None:
        """Write a run whose version 0 is awaited."""
        row = {
            "run_id": run.run_id,
            "definition": run.definition.model_dump_json(),
            "initial": json.dumps(asdict(run.initial)),
        }
        with self._begin() as connection:
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

    def add_run(self, record: RunRecord) -> None:
        """Write a new run, which is prepared no longer; JournalError when its id is taken."""
        row = {
            "run_id": record.run_id,
            "definition": record.definition.model_dump_json(),
            "plan": json.dumps(asdict(record.plan)),
            "initial": json.dumps(asdict(record.initial)),
            "at": record.at,
        }
        with self._begin() as connection:
            connection.execute(sa.insert(_runs), row)
            connection.execute(sa.delete(_prepared).where(_prepared.c.run_id == record.run_id))

    def append(self, run_id: str, facts: Sequence[Fact]) -> None:
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
        with self._begin() as connection:
            connection.execute(sa.insert(_facts), rows)
        self._numbers[run_id] = number + len(rows)

    def runs(self) -> list[RunRecord]:
        """Return every run, oldest first."""
        with self._begin() as connection:
            rows = connection.execute(sa.select(_runs).order_by(_runs.c.number)).all()
        return [_run_record(row, self._name) for row in rows]

    def facts(self, run_id: str) -> list[FactRecord]:
        """Return a run's facts in order."""
        query = sa.select(_facts).where(_facts.c.run_id == run_id).order_by(_facts.c.number)
        with self._begin() as connection:
            rows = connection.execute(query).all()
        return [FactRecord(_fact(row, self._name), row.at) for row in rows]

    def _next_number(self, run_id: str) -> int:
        if run_id not in self._numbers:
            query = sa.select(sa.func.max(_facts.c.number)).where(_facts.c.run_id == run_id)
            with self._begin() as connection:
                last = connection.execute(query).scalar()
            self._numbers[run_id] = 0 if last is None else last + 1
        return self._numbers[run_id]

    def _begin(self) -> _Transaction:
        return _Transaction(self._engine, self._name)

    def _check_version(self) -> None:
        with self._engine.begin() as connection:
            found = _read_meta(connection, "schema_version", 0)
            if found == 0:
                _write_meta(connection, "schema_version", SCHEMA_VERSION)
            elif found != SCHEMA_VERSION:
                raise JournalUnusable(
                    f"journal {self._name} was written by another version of Rengo "
                    f"(schema {found}, this one reads {SCHEMA_VERSION}); "
                    "use that version, or another data folder"
                )


class _Transaction:
    """``engine.begin()`` whose database errors are JournalError."""

    def __init__(self, engine: sa.Engine, name: str) -> None:
        self._context = engine.begin()
        self._name = name

    def __enter__(self) -> sa.Connection:
        try:
            return self._context.__enter__()
        except DBAPIError as error:
            raise _error(error, self._name) from error

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            self._context.__exit__(kind, error, trace)
        except DBAPIError as failure:
            raise _error(failure, self._name) from failure
        if isinstance(error, DBAPIError):
            raise _error(error, self._name) from error


def _engine(text: str) -> sa.Engine:
    try:
        url = sa.make_url(text)
        if url.get_backend_name() == "sqlite":
            engine = sa.create_engine(url)
            sa.event.listen(engine, "connect", _durable)
            return engine
        if url.drivername == "postgresql":
            url = url.set(drivername="postgresql+psycopg")
        patience = {} if "connect_timeout" in url.query else {"connect_timeout": _CONNECT_S}
        # asked first, since a connection that idled may be gone
        return sa.create_engine(url, connect_args=patience, pool_pre_ping=True)
    except ModuleNotFoundError as error:
        if error.name == "psycopg":
            raise MissingExtra("psycopg", "postgres") from error
        raise ConfigError(f"journal URL is not usable: {error}") from error
    except (SQLAlchemyError, ImportError, ValueError) as error:
        raise ConfigError(f"journal URL is not usable: {error}") from error


def _error(error: DBAPIError, name: str) -> JournalError:
    remote = not name.startswith("sqlite")
    kind = JournalUnreachable if remote and isinstance(error, OperationalError) else JournalError
    hint = "; is the disk full?" if is_disk_trouble(error.orig) else ""
    return kind(f"journal {name}: {error.orig}{hint}")


def _durable(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA busy_timeout=5000")
    cursor.close()


def _read_meta(connection: sa.Connection, name: str, default: int) -> int:
    value = connection.execute(sa.select(_meta.c.value).where(_meta.c.name == name)).scalar()
    return default if value is None else int(value)


def _write_meta(connection: sa.Connection, name: str, value: int) -> None:
    changed = connection.execute(
        sa.update(_meta).where(_meta.c.name == name).values(value=value)
    ).rowcount
    if not changed:
        connection.execute(sa.insert(_meta), {"name": name, "value": value})


_ADAPTERS: dict[Any, TypeAdapter[Any]] = {
    kind: TypeAdapter(kind) for kind in (*FACTS.values(), Plan, Model)
}


def _fact(row: Any, journal: str) -> Fact:
    fact_type = FACTS.get(row.kind)
    if fact_type is None:
        raise JournalUnusable(f"journal {journal} holds an unknown fact {row.kind!r}")
    try:
        fact: Fact = _ADAPTERS[fact_type].validate_json(row.body)
    except ValidationError as error:
        where = f"{row.run_id}, number {row.number}"
        raise JournalUnusable(f"journal {journal} holds a damaged {row.kind}: {where}") from error
    return fact


def _prepared_run(row: Any, journal: str) -> PreparedRun:
    try:
        return PreparedRun(
            row.run_id,
            RunDefinition.model_validate_json(row.definition),
            _ADAPTERS[Model].validate_json(row.initial),
        )
    except ValidationError as error:
        raise JournalUnusable(f"journal {journal} holds a damaged run {row.run_id}") from error


def _run_record(row: Any, journal: str) -> RunRecord:
    try:
        return RunRecord(
            row.run_id,
            RunDefinition.model_validate_json(row.definition),
            _ADAPTERS[Plan].validate_json(row.plan),
            _ADAPTERS[Model].validate_json(row.initial),
            row.at,
        )
    except ValidationError as error:
        raise JournalUnusable(f"journal {journal} holds a damaged run {row.run_id}") from error
