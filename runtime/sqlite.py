"""What an error of SQLite means to the person who must do something about it."""

from __future__ import annotations

import sqlite3

_PRIMARY = 0xFF


def is_disk_trouble(error: BaseException | None) -> bool:
    """Return whether the disk is full or failed: the data themselves may be in order."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & _PRIMARY in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}
