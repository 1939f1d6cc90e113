"""SQLite files on a device: what an error means, and how to go on when one is damaged."""

from __future__ import annotations

import logging
import os
import sqlite3
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

_LOG = logging.getLogger(__name__)
_PRIMARY = 0xFF
_DAMAGE = {sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT}
# what keeps a sound file from being opened; READONLY is told apart by the file's mode
_IN_THE_WAY = {
    *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH),
    *(sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_NOMEM),
    *(sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_NOLFS),
}
# for connections: a damaged text is read, and its row's checksum is wrong
lenient_text = partial(str, encoding="utf-8", errors="replace")
T = TypeVar("T")


def is_disk_trouble(error: BaseException | None) -> bool:
    """Return whether the disk is full or failed: the data themselves may be in order."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & _PRIMARY in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}


def is_damage(error: BaseException | None) -> bool:
    """Return whether the file holds what SQLite did not write."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & _PRIMARY in _DAMAGE


def is_damage_at_open(error: BaseException, path: Path) -> bool:
    """Return whether a file cannot be opened since it holds what SQLite did not write.

    A flipped bit in its header gives many errors: that the file is read-only, of an unsupported
    format, or without a table. What remains are locks, permissions, and trouble with the disk.
    """
    if isinstance(error, UnicodeDecodeError):
        return True  # a name in its schema, or in a message about it
    if not isinstance(error, sqlite3.DatabaseError):
        return False
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & _PRIMARY
    if code == sqlite3.SQLITE_READONLY:
        return os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)
    return code not in _IN_THE_WAY


def schema_version(db: sqlite3.Connection, first_stamped: int) -> int:
    """Return which schema a file has, 0 where it has none yet.

    Beside the number stands a stamp that follows from it: a flipped bit is no newer version.

    Args:
        first_stamped: the first version that has a stamp.

    Raises:
        sqlite3.DatabaseError: the number or its stamp is damaged; ``is_damage``.
    """
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (stamp,) = db.execute("PRAGMA application_id").fetchone()
    if stamp != (0 if 0 <= version < first_stamped else _stamp(version)):
        raise _damage(f"its schema number {version} does not agree with its stamp")
    return int(version)


def set_schema_version(db: sqlite3.Connection, version: int) -> None:
    """Write which schema a file has, and its stamp; within the transaction that made it so."""
    db.execute(f"PRAGMA user_version = {version}")
    db.execute(f"PRAGMA application_id = {_stamp(version)}")


def _stamp(version: int) -> int:
    return zlib.crc32(f"rengo {version}".encode()) & 0x7FFFFFFF


def require_tables(db: sqlite3.Connection, *made_by: str) -> None:
    """Raise sqlite3.DatabaseError, which ``is_damage``, unless the tables are as they were made.

    A flipped bit in the name of a column is read without an error.
    """
    query = "SELECT sql FROM sqlite_master WHERE type = 'table'"
    found = {sql for (sql,) in db.execute(query).fetchall()}
    if not {each.strip().replace(" IF NOT EXISTS", "") for each in made_by} <= found:
        raise _damage("a table is not as it was made")


def row_checksum(*values: str | int | bytes) -> int:
    """Return a checksum of a row's values, which also tells their types and bounds apart."""
    crc = 0
    for value in values:
        data = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
        crc = zlib.crc32(f"{type(value).__name__} {len(data)} ".encode(), crc)
        crc = zlib.crc32(data, crc)
    return crc


def require_sound(db: sqlite3.Connection) -> None:
    """Read the whole file; raises sqlite3.DatabaseError, which ``is_damage``, when it is not sound.

    For files that are small: a page that nobody reads for weeks must not fail in a round.
    """
    found = db.execute("PRAGMA integrity_check(1)").fetchone()
    if found != ("ok",):
        raise _damage(str(found[0]))


def _damage(what: str) -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError(f"database disk image is malformed: {what}")
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def opened_or_begun_anew(
    make: Callable[[Path], T], path: Path, damage: type[Exception], lost: str
) -> T:
    """Return ``make(path)``; when that raises ``damage``, of a new file in the damaged one's place.

    The damaged file stays beside it as ``<name>.damaged``, the latest one of each name.

    Args:
        lost: what that means, for the log.
    """
    try:
        return make(path)
    except damage as error:
        kept = _set_aside(path)
        _LOG.error("%s; it lies at %s now and a new one is begun: %s", error, kept, lost)
        return make(path)


def _set_aside(path: Path) -> Path:
    kept = path.with_name(f"{path.name}.damaged")
    # the log before the file: a new file must not find the log of another
    for suffix in ("-wal", "-journal", "-shm"):
        log = path.with_name(f"{path.name}{suffix}")
        beside = kept.with_name(f"{kept.name}{suffix}")
        if log.exists():
            log.replace(beside)
        else:
            beside.unlink(missing_ok=True)
    if path.exists():
        path.replace(kept)
    return kept
