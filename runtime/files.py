"""Files that are whole or absent, whenever the power goes, and what their bytes are."""

from __future__ import annotations

import hashlib
import os
import secrets
import tempfile
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from runtime.errors import ConfigError


def make_folder(path: Path) -> Path:
    """Return the folder, made with mode 0700 where it is not there; ConfigError when it cannot."""
    _require_a_usable_name(path)
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigError(f"folder {path} cannot be made: {error.strerror}") from error
    return path


def require_writable(folder: Path) -> None:
    """Raise ConfigError where nothing could be written into a folder that is or will be there.

    For the end of long work, asked at its beginning; nothing is left behind.
    """
    there = folder.absolute()
    while not os.path.lexists(there):
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there):
            return
    except OSError as error:
        raise ConfigError(f"nothing can be written to {folder}: {error.strerror}") from error


def _require_a_usable_name(path: Path) -> None:
    """Raise ConfigError where no configuration file could name what lies below ``path``."""
    text = os.fsdecode(path.absolute())
    if any(unicodedata.category(each) == "Cs" for each in text):
        reason = "is not UTF-8"
    elif any(unicodedata.category(each) == "Cc" for each in text):
        reason = "has a control character in its name"
    else:
        return
    raise ConfigError(f"folder {text!a} {reason}; choose another folder")


def atomic_write(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace ``path`` by ``data`` so that a reader sees the old bytes or the new, never a part.

    The data and the folder entry are on disk when this returns.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except OSError as error:
        Path(name).unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames and removals within ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write that takes ``path``'s place at the end; an error leaves nothing of it.

    For what a person can make again: nothing is forced to the disk.
    """
    growing = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with growing.open("xb") as file:
            yield file
        growing.replace(path)
    except OSError as error:
        growing.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error
    except BaseException:
        growing.unlink(missing_ok=True)
        raise


def file_sha256(path: Path) -> str:
    """Return a file's sha256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
