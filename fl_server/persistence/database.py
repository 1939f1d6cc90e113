"""The server's database: SQLite (WAL, synchronous=FULL) by default, PostgreSQL by URL."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from runtime.errors import ConfigError, MissingExtra, RengoError, Unavailable
from runtime.sqlite import is_disk_trouble, lenient_text
from runtime.sqlite_log import lost_changes

try:
    import sqlalchemy as sa
    from sqlalchemy.exc import DataError, DBAPIError, OperationalError, SQLAlchemyError
except ImportError as error:
    raise MissingExtra("sqlalchemy", "server") from error

__all__ = [
    "Companion",
    "Database",
    "JournalError",
    "JournalUnreachable",
    "JournalUnusable",
    "Migration",
    "Transaction",
    "add_column",
    "read_meta",
    "sa",
    "write_meta",
]

_CONNECT_S = 10
_shared = sa.MetaData()
_meta = sa.Table(
    "rengo_meta",
    _shared,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("value", sa.BigInteger, nullable=False),
)


Migration: TypeAlias = Callable[[sa.Connection], None]
Companion: TypeAlias = Callable[[sa.Connection], None]


class JournalError(RengoError):
    """The journal cannot be written or read: the server must stop rather than forget."""


class JournalUnusable(JournalError, ConfigError):
    """It is damaged, of another version or not to be opened: a person must mend it."""


class JournalUnreachable(JournalError, Unavailable):
    """The database's server cannot be reached or refuses the credentials."""


class Database:
    """One database, in which the journal and the registry have their tables. One thread calls it.

    Attributes:
        transactions: how many were begun; it only tells whether there were any since a look.

    Raises:
        ConfigError: the URL is not usable.
        JournalUnusable: another version of Rengo wrote the data, or they cannot be opened.
        JournalUnreachable: the database's server cannot be reached.
        JournalError: the disk is full.
    """

    def __init__(self, place: str | Path) -> None:
        self._engine = _engine(place)
        self._companion: Companion | None = None
        self.transactions = 0
        self.name = self._engine.url.render_as_string(hide_password=True)

    def begin(self) -> Transaction:
        """Return a transaction, to be used as a context manager."""
        self.transactions += 1
        return Transaction(self._engine, self.name)

    def change(self) -> Transaction:
        """Return a transaction that writes what somebody asked for; see :meth:`together`."""
        companion, self._companion = self._companion, None
        self.transactions += 1
        return Transaction(self._engine, self.name, companion)

    @contextmanager
    def together(self, companion: Companion) -> Iterator[None]:
        """Call ``companion`` within the block's first :meth:`change`, just before its commit.

        So an effect and the note that it took place are on disk together or not at all. A block
        that changes nothing gives it a transaction of its own, at the end.
        """
        self._companion = companion
        try:
            yield
            if self._companion is not None:
                with self.change():
                    pass
        finally:
            self._companion = None

    def prepare(
        self,
        tables: sa.MetaData,
        subject: str,
        version: int,
        migrations: Mapping[int, Migration] | None = None,
    ) -> None:
        """Make the tables that are missing and check which version wrote those that are there.

        Args:
            tables: what one user of the database needs.
            subject: its name in the table of versions.
            version: what this Rengo reads and writes.
            migrations: by the version that was found, what brings the data one version further.
                All run in one transaction, with the new version's number.
        """
        try:
            _shared.create_all(self._engine)
            tables.create_all(self._engine)
            with self._engine.begin() as connection:
                stored = read_meta(connection, subject, 0)
                found = stored or version
                while migrate := (migrations or {}).get(found):
                    migrate(connection)
                    found += 1
                if stored != found == version:
                    write_meta(connection, subject, version)
        except DBAPIError as error:
            self.close()
            if self._engine.dialect.name == "sqlite" and not is_disk_trouble(error.orig):
                raise JournalUnusable(f"journal {self.name}: {error.orig}") from error
            raise _error(error, self.name) from error
        if found != version:
            self.close()
            raise JournalUnusable(
                f"journal {self.name} was written by another version of Rengo "
                f"(schema {found}, this one reads {version}); "
                "use that version, or another data folder"
            )

    @property
    def file(self) -> Path | None:
        """The SQLite file, None where it is another kind of database."""
        return _file_of(self._engine.url)

    def checkpoint(self) -> None:
        """Move SQLite's log into its file, so that little stands in the log alone."""
        if self.file is None:
            return
        try:
            with self._engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").close()
        except DBAPIError as error:
            raise _error(error, self.name) from error

    def close(self) -> None:
        """Release the database."""
        self._engine.dispose()


class Transaction:
    """``engine.begin()`` whose database errors are JournalError.

    Args:
        companion: called before the commit, if nothing failed before.
    """

    def __init__(self, engine: sa.Engine, name: str, companion: Companion | None = None) -> None:
        self._context = engine.begin()
        self._name = name
        self._companion = companion

    def __enter__(self) -> sa.Connection:
        try:
            self._connection = self._context.__enter__()
        except DBAPIError as error:
            raise _error(error, self._name) from error
        return self._connection

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is None and self._companion is not None:
            try:
                self._companion(self._connection)
            except BaseException as failure:
                self._end(type(failure), failure, failure.__traceback__)
                raise
        self._end(kind, error, trace)

    def _end(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            self._context.__exit__(kind, error, trace)
        except DBAPIError as failure:
            raise _error(failure, self._name) from failure
        # a value that no column holds says nothing of the database
        if isinstance(error, DBAPIError) and not isinstance(error, DataError):
            raise _error(error, self._name) from error


def _engine(place: str | Path) -> sa.Engine:
    try:
        if isinstance(place, Path):
            # pasted into the text of a URL, a path with %20 or ? would be another one
            url = sa.URL.create("sqlite", database=str(place))
        else:
            url = sa.make_url(place)
        if url.get_backend_name() == "sqlite":
            _require_sound(_file_of(url))
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


def _file_of(url: sa.URL) -> Path | None:
    is_file = url.get_backend_name() == "sqlite" and url.database not in {None, "", ":memory:"}
    return Path(str(url.database)) if is_file else None


def _require_sound(path: Path | None) -> None:
    """Make the file for its owner alone, and raise JournalUnusable where its log is damaged."""
    if path is None:
        return
    log = path.with_name(f"{path.name}-wal")
    with contextlib.suppress(OSError):  # SQLite says what is in the way
        path.touch(mode=0o600)
        for each in (path, log, path.with_name(f"{path.name}-shm")):
            if each.exists():
                each.chmod(0o600)
    try:
        if lost_changes(log):
            raise JournalUnusable(
                f"journal {path}: its log {log.name} is damaged, and changes that were on the "
                f"disk are lost; put a backup back, or remove {log} to go on without them"
            )
    except OSError as error:
        raise JournalUnusable(f"journal {path} cannot be opened: {error.strerror}") from error


def _error(error: DBAPIError, name: str) -> JournalError:
    remote = not name.startswith("sqlite")
    kind = JournalUnreachable if remote and isinstance(error, OperationalError) else JournalError
    hint = "; is the disk full?" if is_disk_trouble(error.orig) else ""
    return kind(f"journal {name}: {error.orig}{hint}")


def _durable(connection: Any, _record: Any) -> None:
    connection.text_factory = lenient_text
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA busy_timeout=5000")
    # what was replaced or removed is overwritten: among it passwords
    cursor.execute("PRAGMA secure_delete=ON")
    cursor.close()


def add_column(connection: sa.Connection, column: sa.Column[Any]) -> None:
    """Add a column to the table of an earlier version, unless it is there."""
    table = column.table.name
    if column.name in {each["name"] for each in sa.inspect(connection).get_columns(table)}:
        return
    text = sa.schema.CreateColumn(column).compile(dialect=connection.dialect)
    connection.execute(sa.text(f"ALTER TABLE {table} ADD COLUMN {text}"))


def read_meta(connection: sa.Connection, name: str, default: int) -> int:
    """Return a named number, ``default`` where there is none."""
    value = connection.execute(sa.select(_meta.c.value).where(_meta.c.name == name)).scalar()
    return default if value is None else int(value)


def write_meta(connection: sa.Connection, name: str, value: int) -> None:
    """Store a named number."""
    changed = connection.execute(
        sa.update(_meta).where(_meta.c.name == name).values(value=value)
    ).rowcount
    if not changed:
        connection.execute(sa.insert(_meta), {"name": name, "value": value})
