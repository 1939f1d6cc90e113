"""Messages that survive power loss: on disk before they are sent, removed when answered."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from broker.wire.limits import check_message
from runtime.errors import ConfigError, RengoError
from runtime.sqlite import (
    is_damage,
    is_damage_at_open,
    lenient_text,
    require_sound,
    require_tables,
    row_checksum,
    schema_version,
    set_schema_version,
)

Until = Literal["puback", "confirm"]
_UNTIL = frozenset(get_args(Until))
_LOG = logging.getLogger(__name__)

_SCHEMA_VERSION = 2
# rows have checksums since, and the version its stamp
_FIRST_STAMPED = 2
_SCHEMA = """
CREATE TABLE outbox (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL UNIQUE,
    topic TEXT NOT NULL,
    payload BLOB NOT NULL,
    retain INTEGER NOT NULL,
    until TEXT NOT NULL,
    crc INTEGER NOT NULL
)
"""
_COLUMNS = "seq, key, topic, payload, retain, until"
_ALL = f"SELECT {_COLUMNS}, crc FROM outbox"  # noqa: S608 (constant text)


class OutboxError(RengoError):
    """The outbox's file cannot be read or written (disk full, damaged): nothing was stored."""


class OutboxDamaged(OutboxError):
    """The file is damaged, for good: it can only be replaced."""


class OutboxFull(OutboxError):
    """The cap on rows or bytes is reached: wait for answers, or drop what is obsolete."""


@dataclass(frozen=True)
class OutboxRow:
    """One stored message. ``seq`` grows with every put and is never used again."""

    seq: int
    key: str
    topic: str
    payload: bytes
    retain: bool
    until: Until


class Outbox:
    """A durable set of messages by key, in the order in which they were put.

    Any thread may call any method. One process owns the file at a time.

    Args:
        path: the SQLite file, created 0600.
        max_rows: the cap on messages.
        max_bytes: the cap on the sum of payloads.

    Raises:
        ConfigError: another process has the file open, or a newer Rengo wrote it.
        OutboxDamaged: the file is damaged.
        OutboxError: the file cannot be opened.
    """

    def __init__(
        self, path: Path, *, max_rows: int = 10_000, max_bytes: int = 64 * 1024 * 1024
    ) -> None:
        self.path = path
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._rows = self._bytes = self._newest = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.touch(mode=0o600, exist_ok=True)
        except OSError as error:
            raise OutboxError(f"cannot create the outbox {path}: {error.strerror}") from error
        with self._named_errors():
            self._db = sqlite3.connect(
                path, timeout=2.0, isolation_level=None, check_same_thread=False
            )
            self._db.text_factory = lenient_text
            try:
                self._open()
            except BaseException as error:
                self._db.close()
                if is_damage_at_open(error, path):
                    raise OutboxDamaged(f"the outbox {path}: {error}") from error
                raise

    def _open(self) -> None:
        # The exclusive lock keeps a second process out and needs no shared-memory file.
        self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
        # of a new file: every change writes whole pages, and messages are small
        self._db.execute("PRAGMA page_size = 1024")
        try:
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            require_sound(self._db)
            version = schema_version(self._db, _FIRST_STAMPED)
            if version > _SCHEMA_VERSION:
                raise ConfigError(
                    f"the outbox {self.path} was written by a newer Rengo (schema {version}); "
                    "upgrade this one"
                )
            self._bring_up_to_date(version)
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise ConfigError(
                    f"the outbox {self.path} is in use by another process; "
                    "two identities must not share a data folder"
                ) from error
            raise
        self._drop_damaged()
        self._rows, self._bytes, self._newest = self._db.execute(
            "SELECT count(*), coalesce(sum(length(payload)), 0), coalesce(max(seq), 0) FROM outbox"
        ).fetchone()

    def _bring_up_to_date(self, version: int) -> None:
        """Make the table, or give its rows their checksums; in one transaction."""
        self._db.execute("BEGIN EXCLUSIVE")
        if version == 1:
            self._db.execute("ALTER TABLE outbox RENAME TO earlier")
        if version != _SCHEMA_VERSION:
            self._db.execute(_SCHEMA)
            set_schema_version(self._db, _SCHEMA_VERSION)
        if version == 1:
            rows = self._db.execute(f"SELECT {_COLUMNS} FROM earlier ORDER BY seq").fetchall()  # noqa: S608 (constant text)
            self._db.executemany(
                "INSERT INTO outbox VALUES (?, ?, ?, ?, ?, ?, ?)",
                [(*row, row_checksum(*row[1:])) for row in rows],
            )
            self._db.execute("DROP TABLE earlier")
        self._db.execute("COMMIT")
        require_tables(self._db, _SCHEMA)

    def _drop_damaged(self) -> None:
        """Remove rows that are not as they were written; the file is sound."""
        for seq, key, topic, payload, retain, until, crc in self._db.execute(_ALL).fetchall():
            try:
                if row_checksum(key, topic, payload, retain, until) != crc:
                    raise ConfigError("it is damaged")
                if not isinstance(payload, bytes) or until not in _UNTIL:
                    raise ConfigError("it is no message")
                check_message(topic, payload)
            except RengoError as error:
                _LOG.error("the outbox %s: message %s is lost: %s", self.path, seq, error)
                self._db.execute("DELETE FROM outbox WHERE seq = ?", (seq,))

    @property
    def newest_seq(self) -> int:
        """The ``seq`` of the latest put, 0 when there was none."""
        return self._newest

    @property
    def size_bytes(self) -> int:
        """The sum of the stored payloads."""
        return self._bytes

    def __len__(self) -> int:
        return self._rows

    def put(
        self, key: str, topic: str, payload: bytes, *, retain: bool = False, until: Until
    ) -> None:
        """Store a message; it is on disk when this returns. The same key replaces.

        Args:
            key: identifies the message, for example by its run, round and device.
            topic: where it goes.
            payload: its bytes.
            retain: whether the broker keeps it as the topic's document.
            until: ``"puback"`` keeps it until the broker has it, ``"confirm"`` until
                :meth:`confirm`, sent again meanwhile.

        Raises:
            OutboxFull: nothing was stored.
            OutboxError: nothing is known to be stored.
            MessageTooLarge, ConfigError: no broker would accept it.
        """
        check_message(topic, payload)
        row = (key, topic, payload, int(retain), until)
        with self._lock, self._named_errors():
            old = self._db.execute(
                "SELECT length(payload) FROM outbox WHERE key = ?", (key,)
            ).fetchone()
            rows = self._rows + (0 if old else 1)
            size = self._bytes + len(payload) - (old[0] if old else 0)
            if rows > self._max_rows or size > self._max_bytes:
                raise OutboxFull(
                    f"the outbox {self.path} is full: {self._rows} of {self._max_rows} messages, "
                    f"{self._bytes} of {self._max_bytes} bytes wait for an answer"
                )
            cursor = self._db.execute(
                "INSERT OR REPLACE INTO outbox (key, topic, payload, retain, until, crc)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (*row, row_checksum(*row)),
            )
            self._rows, self._bytes = rows, size
            self._newest = cursor.lastrowid or 0

    def confirm(self, key: str) -> bool:
        """Remove the message with ``key``; return whether there was one."""
        return self._delete("key", [key]) == 1

    def discard(self, seqs: Sequence[int]) -> int:
        """Remove exactly these rows (one replaced meanwhile stays); return how many there were."""
        return self._delete("seq", seqs)

    def pending(self, *, after: int = 0, limit: int = -1) -> list[OutboxRow]:
        """Return the messages put after ``after``, oldest first, at most ``limit`` of them."""
        return self._select("WHERE seq > ? ORDER BY seq LIMIT ?", (after, limit))

    def get(self, seq: int) -> OutboxRow | None:
        """Return that row, or None when it was answered or replaced."""
        rows = self._select("WHERE seq = ?", (seq,))
        return rows[0] if rows else None

    def close(self) -> None:
        """Release the file; what is pending stays in it."""
        with self._lock, self._named_errors():
            self._db.close()

    def _select(self, where: str, values: tuple[int, ...]) -> list[OutboxRow]:
        with self._lock, self._named_errors():
            found = self._db.execute(
                f"SELECT {_COLUMNS} FROM outbox {where}",  # noqa: S608 (constant text)
                values,
            ).fetchall()
        return [
            OutboxRow(seq, key, topic, payload, bool(retain), until)
            for seq, key, topic, payload, retain, until in found
        ]

    def _delete(self, column: Literal["key", "seq"], values: Sequence[str | int]) -> int:
        removed: list[int] = []
        with self._lock, self._named_errors(), self._without_sync():
            self._db.execute("BEGIN")
            try:
                for value in values:
                    removed += [
                        size
                        for (size,) in self._db.execute(
                            f"DELETE FROM outbox WHERE {column} = ?"  # noqa: S608 (constant text)
                            " RETURNING length(payload)",
                            (value,),
                        ).fetchall()
                    ]
                self._db.execute("COMMIT")
            except sqlite3.Error:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            self._rows -= len(removed)
            self._bytes -= sum(removed)
        return len(removed)

    @contextmanager
    def _without_sync(self) -> Iterator[None]:
        """Within the block, writes need not reach the disk at once.

        A removal that a power cut undoes costs one duplicate, which its receiver recognises.
        """
        self._db.execute("PRAGMA synchronous = NORMAL")
        try:
            yield
        finally:
            self._db.execute("PRAGMA synchronous = FULL")

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            kind = OutboxDamaged if is_damage(error) else OutboxError
            raise kind(f"the outbox {self.path}: {error}") from error
        except sqlite3.Error as error:
            raise OutboxError(f"the outbox {self.path}: {error}") from error
