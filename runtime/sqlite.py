"""SQLite files on a device: what an error means, and how to go on when one is damaged."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

_LOG = logging.getLogger(__name__)
_PRIMARY = 0xFF
_DAMAGE = {sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT}
T = TypeVar("T")


def is_disk_trouble(error: BaseException | None) -> bool:
    """Return whether the disk is full or failed: the data themselves may be in order."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & _PRIMARY in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}


def is_damage(error: BaseException | None) -> bool:
    """Return whether the file holds what SQLite did not write."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & _PRIMARY in _DAMAGE


def require_sound(db: sqlite3.Connection) -> None:
    """Read the whole file; raises sqlite3.DatabaseError, which ``is_damage``, when it is not sound.

    For files that are small: a page that nobody reads for weeks must not fail in a round.
    """
    found = db.execute("PRAGMA integrity_check(1)").fetchone()
    if found != ("ok",):
        error = sqlite3.DatabaseError(f"database disk image is malformed: {found[0]}")
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise error


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
