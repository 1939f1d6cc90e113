"""A site as one file, taken while it runs, and a site made of such a file.

A backup is a tar of the site's folder whose last member says what it holds. In it is what cannot be
made again: the record, identities, authority, journal, objects and their keys. Left out are the
broker's state (its retained messages and users come again from the server and the devices), what is
in work, logs, the journal's mark, and the folders of devices that run here.

The journal names objects, so the copy of the store has to be the later one, and nothing that the
journal names may be deleted in between. JuiceFS changes no object without a transaction on its
database, so that is locked while the journal and then the database are copied: a request that would
change something waits or is tried again. An object's blocks never change; most are copied before.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import sqlite3
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import IO, Annotated, BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rengo.site.folder import SiteFolder
from runtime.errors import ConfigError, StorageError
from runtime.files import make_folder, sync_folder, whole_file
from runtime.processes.ports import require_free

_CONTENTS = "backup.json"
_MAX_CONTENTS_BYTES = 256 << 20
_LEFT_OUT = ("broker", "devices", "logs", "server/work", "store/cache", "store/.minio")
_LEFT_OUT_SUFFIXES = (
    *(".sock", ".lock", ".pid", ".log", ".log.1", "-wal", "-shm", "-journal"),
    # what the journal has reached: copied after the journal, it might be ahead of the copy
    ".sqlite.mark",
)
# what is written whole and renamed, while it is written
_UNFINISHED = re.compile(r"(.*/)?\.[^/]+\.[a-z0-9_]{8}")
# the stores' own, of which every file counts: of JuiceFS the blocks, of SeaweedFS all
_BLOCKS, _OBJECTS = "store/blobs", "store/objects"
_META = "store/meta.db"
_SQLITE = b"SQLite format 3\0"
_LOCK_S = 60.0
_PIECE_BYTES = 1 << 20


class StoredFile(BaseModel):
    """One file of a backup."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size_bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class BackupContents(BaseModel):
    """What a backup holds; its last member, so that one that was cut short has none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    rengo: str
    domain: str
    files: dict[str, StoredFile]

    @property
    def size_bytes(self) -> int:
        """The size of all files."""
        return sum(each.size_bytes for each in self.files.values())


def back_up(root: Path, file: Path) -> BackupContents:
    """Write a backup of the site in a folder, which may run, and return what it holds.

    Raises:
        ConfigError: there is no site, the file would lie in it, or its store can be copied only
            while the site is stopped.
        StorageError: the store's database stays locked.
        OSError: a file cannot be read or written.
    """
    record = SiteFolder(root).record() if root.is_dir() else None
    if record is None:
        raise ConfigError(f"there is no site in {root}")
    if file.resolve().is_relative_to(root.resolve()):
        raise ConfigError(f"{file} lies in the site's own folder, and would be lost with it")
    with contextlib.ExitStack() as held:
        if record.store != "juicefs":
            held.enter_context(_stopped(root, record.store_port, record.store))
        out = held.enter_context(whole_file(file.absolute()))
        os.fchmod(out.fileno(), 0o600)
        archive = held.enter_context(tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT))
        writing = _Writing(root, archive)
        writing.add_tree(_OBJECTS)
        writing.add_tree(_BLOCKS)
        with _unchanging(root / _META):
            writing.add_rest()
            writing.add_database(_META)
            writing.add_tree(_BLOCKS)
        contents = BackupContents(rengo=version("rengo"), domain=record.domain, files=writing.files)
        writing.add_bytes(_CONTENTS, contents.model_dump_json().encode())
        return contents


def restore(file: Path, root: Path) -> BackupContents:
    """Make a site's folder of a backup, whole or not at all.

    Raises:
        ConfigError: the folder is not empty, or the file is not a whole backup.
    """
    root = root.absolute()
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ConfigError(f"{root} is not empty; restore into a new folder")
    make_folder(root.parent)
    growing = Path(tempfile.mkdtemp(prefix=f".{root.name[:100]}.", dir=root.parent))
    try:
        with file.open("rb") as source:
            contents = _unpack(source, growing, file)
        make_folder(root)
        growing.replace(root)
    except BaseException:
        shutil.rmtree(growing, ignore_errors=True)
        raise
    sync_folder(root.parent)
    return contents


@contextlib.contextmanager
def _stopped(root: Path, port: int, store: str) -> Iterator[None]:
    """Within the block the site does not start; ConfigError where it runs."""
    hint = f"a site whose store is {store} is backed up while it is stopped"
    try:
        require_free(port, "store")
        lock = SiteFolder(root).lock()
    except ConfigError as error:
        raise ConfigError(f"{hint}: {error}") from error
    with lock:
        yield


@contextlib.contextmanager
def _unchanging(database: Path) -> Iterator[None]:
    """Within the block nobody changes the database; they may read it."""
    if not database.exists():
        yield
        return
    db = sqlite3.connect(database, isolation_level=None, timeout=_LOCK_S)
    try:
        db.execute("BEGIN IMMEDIATE")
        yield
        db.execute("ROLLBACK")
    except sqlite3.Error as error:
        raise StorageError(f"{database} cannot be copied: {error}") from error
    finally:
        db.close()


@dataclass
class _Writing:
    """A backup that is written: each file once."""

    root: Path
    archive: tarfile.TarFile
    files: dict[str, StoredFile] = field(default_factory=dict)

    def add_tree(self, name: str) -> None:
        """Add the files below a folder that are not in it yet; what goes meanwhile is left out."""
        for path in sorted((self.root / name).rglob("*")):
            key = path.relative_to(self.root).as_posix()
            if key not in self.files and path.is_file() and not path.is_symlink():
                with contextlib.suppress(FileNotFoundError), path.open("rb") as source:
                    self._add(key, source)

    def add_rest(self) -> None:
        """Add all that belongs to a backup but what the store has written.

        What goes meanwhile, as a file that is written and renamed, is left out.
        """
        for path in sorted(self.root.rglob("*")):
            key = path.relative_to(self.root).as_posix()
            if _comes_again(key) or _is_below(key, (_BLOCKS, _OBJECTS, _META)):
                continue
            if path.is_file() and not path.is_symlink():
                with contextlib.suppress(FileNotFoundError):
                    self._add_file(key, path)

    def _add_file(self, key: str, path: Path) -> None:
        with path.open("rb") as source:
            is_database = source.read(len(_SQLITE)) == _SQLITE
            if not is_database:
                source.seek(0)
                self._add(key, source)
        if is_database:
            self.add_database(key)

    def add_database(self, name: str) -> None:
        """Add an SQLite file as it is now, with what is in its log, whoever writes it."""
        if not (self.root / name).exists():
            return
        with tempfile.TemporaryDirectory(prefix="rengo-backup-") as folder:
            copy = Path(folder) / "copy"
            with (
                contextlib.closing(sqlite3.connect(self.root / name, timeout=_LOCK_S)) as source,
                contextlib.closing(sqlite3.connect(copy)) as target,
            ):
                source.backup(target)
            with copy.open("rb") as data:
                self._add(name, data)

    def add_bytes(self, name: str, data: bytes) -> None:
        """Add a member of these bytes."""
        with tempfile.TemporaryFile() as file:
            file.write(data)
            file.seek(0)
            self._add(name, file)

    def _add(self, name: str, source: IO[bytes]) -> None:
        member = tarfile.TarInfo(name)
        member.size, member.mode = os.fstat(source.fileno()).st_size, 0o600
        hashing = _Hashing(source)
        self.archive.addfile(member, hashing)
        self.files[name] = StoredFile(size_bytes=member.size, sha256=hashing.digest.hexdigest())


class _Hashing:
    """A file that is read once, with the sha256 of what was read."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._source.read(size)
        self.digest.update(data)
        return data


def _is_below(key: str, folders: Iterable[str]) -> bool:
    return any(key == name or key.startswith(f"{name}/") for name in folders)


def _comes_again(key: str) -> bool:
    """Whether a file of a site is made again without a backup of it, or must be."""
    if _is_below(key, (_BLOCKS, _OBJECTS)):
        return False
    named = key.endswith(_LEFT_OUT_SUFFIXES) or _UNFINISHED.fullmatch(key) is not None
    return named or _is_below(key, _LEFT_OUT)


def _unpack(source: BinaryIO, folder: Path, file: Path) -> BackupContents:
    found: dict[str, StoredFile] = {}
    contents: BackupContents | None = None
    try:
        with tarfile.open(fileobj=source, mode="r|") as archive:
            for member in archive:
                data = archive.extractfile(member) if member.isreg() else None
                if data is None or not _is_safe(member.name) or contents is not None:
                    raise ConfigError(f"{file} is not a backup of a site: {member.name!a}")
                if member.name == _CONTENTS:
                    text = data.read(_MAX_CONTENTS_BYTES)
                    contents = BackupContents.model_validate_json(text)
                else:
                    found[member.name] = _write(data, folder / member.name)
    except ValidationError as error:
        raise ConfigError(f"{file} is of another version of Rengo, or damaged") from error
    except (tarfile.TarError, EOFError) as error:
        raise ConfigError(f"{file} is not a backup of a site: {error}") from error
    if contents is None or contents.files != found:
        raise ConfigError(f"{file} is cut short or damaged: it does not hold all that it names")
    for name in filter(_comes_again, found):  # an earlier version put it in
        (folder / name).unlink()
    return contents


def _is_safe(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and name == path.as_posix() != "."


def _write(data: IO[bytes], path: Path) -> StoredFile:
    make_folder(path.parent)
    hashing, size = _Hashing(data), 0
    with open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as out:
        while piece := hashing.read(_PIECE_BYTES):
            out.write(piece)
            size += len(piece)
    return StoredFile(size_bytes=size, sha256=hashing.digest.hexdigest())
