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


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _translated(source: SqliteSource, error: sqlite3.Error) -> Exception:
    if is_damage(error):
        return NoData(f"{source.path} is damaged: {error}")
    if getattr(error, "sqlite_errorcode", None) in _GONE:
        return ConfigError(f"{source.path}: {error}")
    return Unavailable(f"{source.path}: {error}")
