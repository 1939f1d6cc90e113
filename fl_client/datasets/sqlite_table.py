"""Reads examples from an SQLite table that another program fills."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator

from fl_client.datasets.sample import BadSample, NoData, Sample, SampleReader
from fl_client.datasets.settings import DataSettings, SqliteSource
from runtime.errors import ConfigError, Unavailable
from runtime.sqlite import is_damage

_BUSY_S = 10.0
_GONE = {sqlite3.SQLITE_ERROR}


def newest_first(
    source: SqliteSource, settings: DataSettings, refused: Counter[str]
) -> Iterator[Sample]:
    """Yield the examples, the highest rowid first.

    Raises:
        NoData: there is no such file, or it is damaged.
        ConfigError: the table or a column is not there.
        Unavailable: it is locked, or the disk failed.
    """
    if not source.path.is_file():
        raise NoData(f"{source.path} is not there")
    reader = SampleReader(source, settings.classes, textual=True)
    columns = _columns(source)
    query = (
        f"SELECT {', '.join(map(_quoted, columns))} FROM {_quoted(source.table)} "  # noqa: S608
        f"ORDER BY {_quoted(source.rowid)} DESC LIMIT ?"
    )
    uri = f"{source.path.absolute().as_uri()}?mode=ro"
    db = sqlite3.connect(uri, uri=True, timeout=_BUSY_S)
    try:
        db.execute("PRAGMA query_only=ON")
        db.text_factory = lambda value: value.decode("utf-8", "replace")
        _require_columns(db, source, columns)
        if not source.id:
            _require_names(db, source, settings.store.max_examples)
        for row in db.execute(query, (settings.store.max_examples,)):
            try:
                yield reader.read(dict(zip(columns, row, strict=True)), name=str(row[0]))
            except BadSample as error:
                refused[error.reason] += 1
    except sqlite3.Error as error:
        raise _translated(source, error) from error
    finally:
        db.close()


def _columns(source: SqliteSource) -> list[str]:
    """Return the columns to read, the rowid first."""
    named = [feature.name for feature in source.features]
    others = (source.label, source.id, source.group, source.time)
    return list(dict.fromkeys([source.rowid, *named, *(name for name in others if name)]))


def _require_columns(db: sqlite3.Connection, source: SqliteSource, columns: list[str]) -> None:
    # SQLite reads a quoted name that is no column as text
    found = [row[1] for row in db.execute(f"PRAGMA table_info({_quoted(source.table)})")]
    if not found:
        raise ConfigError(f"{source.path} has no table {source.table!r}")
    missing = [name for name in columns if name not in {*found, "rowid"}]
    if missing:
        raise ConfigError(
            f"table {source.table} of {source.path} has no column {', '.join(missing)}; "
            f"its columns are: {', '.join(found)}"
        )
    if source.rowid not in found and not _has_rowid(db, source):
        raise ConfigError(
            f"{source.table} of {source.path} is a view or a table WITHOUT ROWID, whose rows have "
            "no number: set rowid to a column that increases and differs from row to row"
        )


def _has_rowid(db: sqlite3.Connection, source: SqliteSource) -> bool:
    kinds = db.execute(
        "SELECT type FROM sqlite_master WHERE name = ? COLLATE NOCASE", (source.table,)
    ).fetchall()
    if ("view",) in kinds:
        # some versions of SQLite have NULL there
        return False
    try:
        # not quoted: SQLite would read it as text
        db.execute(f"SELECT rowid FROM {_quoted(source.table)} LIMIT 0")  # noqa: S608
    except sqlite3.OperationalError:
        return False
    return True


def _require_names(db: sqlite3.Connection, source: SqliteSource, limit: int) -> None:
    """Raise ConfigError where the column that names the rows gives most of them one name.

    The split goes by the name, and all of one name are on one side.
    """
    rowid = _quoted(source.rowid)
    count, names = db.execute(
        f"SELECT COUNT(*), COUNT(DISTINCT name) FROM (SELECT {rowid} AS name "  # noqa: S608
        f"FROM {_quoted(source.table)} ORDER BY {rowid} DESC LIMIT ?)",
        (limit,),
    ).fetchone()
    if count > 1 and names * 2 < count:
        raise ConfigError(
            f"column {source.rowid} of {source.table} in {source.path} has {names} values in "
            f"{count} rows: set rowid to a column that differs from row to row, or id to one that "
            "names them"
        )


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _translated(source: SqliteSource, error: sqlite3.Error) -> Exception:
    if is_damage(error):
        return NoData(f"{source.path} is damaged: {error}")
    if getattr(error, "sqlite_errorcode", None) in _GONE:
        return ConfigError(f"{source.path}: {error}")
    return Unavailable(f"{source.path}: {error}")
