"""One process at a time: a lock on a file, which the kernel releases with its holder."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO

from runtime.errors import ConfigError


def take_lock(path: Path, busy: str) -> IO[bytes]:
    """Return the open lock; closing it releases it.

    Raises:
        ConfigError: another process holds it; says ``busy``.
    """
    lock = path.open("ab")
    os.fchmod(lock.fileno(), 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise ConfigError(busy) from error
    return lock
