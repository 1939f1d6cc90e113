"""Stores gathered samples, up to a bound, in one SQLite file.

One process writes (the collector), others read at the same time. Committed samples survive a kill;
a power cut can lose the latest commits, but never the file.
"""

from __future__ import annotations

import logging
import sqlite3
import zlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fl_client.datasets.sample import Sample
from fl_client.datasets.settings import SampleStoreSettings
from runtime.errors import ConfigError, RengoError, Unavailable
from runtime.sqlite import (
    is_damage,
    is_damage_at_open,
    is_disk_trouble,
    lenient_text,
    opened_or_begun_anew,
    require_tables,
    schema_version,
    set_schema_version,
)

_LOG = logging.getLogger(__name__)
_SCHEMA_VERSION = 2
# the same table as before, with a stamp beside the version
_FIRST_STAMPED = 2
_SCHEMA = """
CREATE TABLE IF NOT EXISTS samples (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id BLOB NOT NULL, at_s REAL NOT NULL,
    grp TEXT NOT NULL, label REAL NOT NULL, features BLOB NOT NULL, crc INTEGER NOT NULL
)
"""
_INSERT = "INSERT INTO samples (id, at_s, grp, label, features, crc) VALUES (?, ?, ?, ?, ?, ?)"
_REFUSED = "CREATE TABLE IF NOT EXISTS refused (reason TEXT PRIMARY KEY, count INTEGER NOT NULL)"
_COUNT = "INSERT INTO refused VALUES (?, ?) ON CONFLICT (reason) DO UPDATE SET count = count + ?2"
_PAGE_BYTES = 4096
_CHECKPOINT_PAGES = 256
_DAY_S = 86_400.0
_BUSY_S = 10.0
# in memory, not indexed: an index of digests would write a page of flash for every sample
_DEDUPLICATED = 4096
# a clock that is off by years must not delete everything at once
_OLD_AT_ONCE = 0.5
_BELIEVED_AFTER_S = 3600.0
_LOST = "the samples in it are lost to training"


class SampleStoreError(RengoError):
    """The store cannot be written (disk full, disk failed)."""


class SampleStoreDamaged(SampleStoreError):
    """The file is damaged."""


def open_store(folder: Path, settings: SampleStoreSettings) -> SampleStore:
    """Return the store of a folder; a damaged file is set aside and a new one created."""
    return opened_or_begun_anew(
        lambda path: SampleStore(path, settings), store_path(folder), SampleStoreDamaged, _LOST
    )


def store_path(folder: Path) -> Path:
    """Return the file of a folder's samples."""
    return folder / "samples.sqlite"


class SampleStore:
    """The writing side. One thread calls it.

    Raises:
        SampleStoreDamaged: the file is damaged.
        SampleStoreError: it cannot be written.
        ConfigError: another version wrote it, or it cannot be opened.
    """

    def __init__(self, path: Path, settings: SampleStoreSettings) -> None:
        self.path = path
        self._settings = settings
        self._old_since_s: float | None = None
        self._latest: dict[bytes, None] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.touch(mode=0o600, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{path} cannot be opened: {error.strerror}") from error
        self._db = sqlite3.connect(path, isolation_level=None, timeout=_BUSY_S)
        self._db.text_factory = lenient_text
        try:
            self._open()
        except (sqlite3.Error, UnicodeDecodeError) as error:
            self._db.close()
            if is_damage_at_open(error, path):
                raise SampleStoreDamaged(f"{path}: {error}") from error
            raise _translated(path, error) from error
        except BaseException:
            self._db.close()
            raise

    def _open(self) -> None:
        version = schema_version(self._db, _FIRST_STAMPED)
        if not 0 <= version <= _SCHEMA_VERSION:
            raise ConfigError(f"{self.path} was written by another version of Rengo")
        (sound,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
        if sound != "ok":
            raise SampleStoreDamaged(f"{self.path}: {sound}")
        # pages of deleted samples are reused, so that the file does not grow beyond its bound
        self._db.execute(f"PRAGMA page_size={_PAGE_BYTES}")
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute(f"PRAGMA journal_size_limit={1 << 20}")
        self._db.execute(f"PRAGMA wal_autocheckpoint={_CHECKPOINT_PAGES}")
        self._db.execute(_SCHEMA)
        self._db.execute(_REFUSED)
        require_tables(self._db, _SCHEMA, _REFUSED)
        if version != _SCHEMA_VERSION:
            self._db.execute("BEGIN IMMEDIATE")
            set_schema_version(self._db, _SCHEMA_VERSION)
            self._db.execute("COMMIT")
        newest = self._db.execute(
            "SELECT id FROM samples ORDER BY seq DESC LIMIT ?", (_DEDUPLICATED,)
        ).fetchall()
        self._latest = dict.fromkeys(identity for (identity,) in reversed(newest))

    def close(self) -> None:
        """Release the file."""
        self._db.close()

    def __len__(self) -> int:
        (count,) = self._db.execute("SELECT COUNT(*) FROM samples").fetchone()
        return int(count)

    def add(
        self,
        samples: Sequence[Sample],
        now_s: float,
        monotonic_s: float,
        refused: Mapping[str, int] | None = None,
    ) -> int:
        """Store samples in one commit and drop the oldest beyond the bounds; return how many.

        A sample whose id was stored recently is skipped: a broker may deliver it twice.

        Args:
            refused: how many records were refused since the last call, by reason.

        Raises:
            SampleStoreDamaged, SampleStoreError: none of them is stored.
        """
        fresh = {each.id: each for each in samples if each.id not in self._latest}
        rows = [_row(sample, now_s) for sample in fresh.values()]
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany(_INSERT, rows)
                self._db.executemany(_COUNT, list((refused or {}).items()))
                self._trim(now_s, monotonic_s)
                self._db.execute("COMMIT")
            except sqlite3.Error:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise _translated(self.path, error) from error
        self._latest.update(dict.fromkeys(fresh))
        for identity in list(self._latest)[:-_DEDUPLICATED]:
            del self._latest[identity]
        return len(rows)

    def _trim(self, now_s: float, monotonic_s: float) -> None:
        self._drop_old(now_s, monotonic_s)
        excess = len(self) - self._settings.max_examples
        if excess > 0:
            self._drop(excess)
        while (over := self._used_bytes() - self._settings.max_mib * (1 << 20)) > 0 and len(self):
            per_sample = self._used_bytes() / len(self)
            self._drop(max(1, int(over / per_sample)))

    def _drop_old(self, now_s: float, monotonic_s: float) -> None:
        if not self._settings.max_age_days:
            return
        since = now_s - self._settings.max_age_days * _DAY_S
        (old,) = self._db.execute(
            "SELECT COUNT(*) FROM samples WHERE at_s < ?", (since,)
        ).fetchone()
        if old <= _OLD_AT_ONCE * len(self):
            self._old_since_s = None
        elif self._old_since_s is None:
            self._old_since_s = monotonic_s
        if self._old_since_s is None or monotonic_s - self._old_since_s >= _BELIEVED_AFTER_S:
            self._db.execute("DELETE FROM samples WHERE at_s < ?", (since,))

    def _used_bytes(self) -> int:
        (pages,) = self._db.execute("PRAGMA page_count").fetchone()
        (free,) = self._db.execute("PRAGMA freelist_count").fetchone()
        return int(pages - free) * _PAGE_BYTES

    def _drop(self, count: int) -> None:
        self._db.execute(
            "DELETE FROM samples WHERE seq IN (SELECT seq FROM samples ORDER BY seq LIMIT ?)",
            (count,),
        )


def stored_samples(path: Path, limit: int) -> Iterator[Sample]:
    """Yield the newest samples, the newest first, from a file that another process writes.

    A sample whose checksum is wrong is skipped. A page that cannot be read ends the iteration; the
    collector sets the file aside at its next start.

    Raises:
        Unavailable: the file is locked or the disk failed.
    """
    if not path.exists():
        return
    bad = 0
    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=_BUSY_S)
    db.text_factory = lenient_text
    try:
        if _is_new(db):
            return
        found = db.execute(
            "SELECT id, grp, label, features, crc FROM samples ORDER BY seq DESC LIMIT ?", (limit,)
        )
        for row in found:
            sample = _sample(*row)
            if sample is None:
                bad += 1
            else:
                yield sample
    except (sqlite3.Error, UnicodeDecodeError) as error:
        if not is_damage_at_open(error, path):
            raise Unavailable(f"{path}: {error}") from error
        _LOG.error("%s is damaged; the samples before the damage are used: %s", path, error)
    finally:
        db.close()
        if bad:
            _LOG.error("%s: %d samples have a wrong checksum and are skipped", path, bad)


def stored_refusals(path: Path) -> int:
    """Return how many records the collector has refused in all, 0 if that cannot be read."""
    if not path.exists():
        return 0
    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=_BUSY_S)
    try:
        if _is_new(db):
            return 0
        (count,) = db.execute("SELECT COALESCE(SUM(count), 0) FROM refused").fetchone()
        return int(count)
    except sqlite3.Error as error:
        _LOG.warning("%s: %s", path, error)
        return 0
    finally:
        db.close()


def _is_new(db: sqlite3.Connection) -> bool:
    """Return whether the collector is still creating the file: it writes the version last."""
    return bool(db.execute("PRAGMA user_version").fetchone() == (0,))


def _row(sample: Sample, now_s: float) -> tuple[bytes, float, str, float, bytes, int]:
    features = array("f", sample.features).tobytes()
    crc = _crc(sample.id, sample.group, sample.label, features)
    return sample.id, now_s, sample.group, sample.label, features, crc


def _sample(identity: bytes, group: str, label: float, features: bytes, crc: int) -> Sample | None:
    if len(features) % 4 or _crc(identity, group, label, features) != crc:
        return None
    return Sample(identity, group, label, array("f", features))


def _crc(identity: bytes, group: str, label: float, features: bytes) -> int:
    fields = f"{identity.hex()} {label!r} {group}".encode("utf-8", "replace")
    return zlib.crc32(features, zlib.crc32(fields))


def _translated(path: Path, error: sqlite3.Error | UnicodeDecodeError) -> SampleStoreError:
    if is_damage(error):
        return SampleStoreDamaged(f"{path}: {error}")
    full = "; is the disk full?" if is_disk_trouble(error) else ""
    return SampleStoreError(f"{path}: {error}{full}")
