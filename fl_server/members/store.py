"""The registry of members: devices, join tokens, and the audit log of who did what when.

Every change is written together with its entry in the audit log, or not at all. The log only grows;
each entry holds the hash of the one before, so that a change to the past shows. Each member's row
has a digest: one that is not as it was written is set aside at the next start, alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from fl_server.members.rules import AuditEvent, DeviceRecord, TokenRecord
from fl_server.persistence.database import Database, JournalUnusable, add_column, sa
from runtime.errors import PeerError, RengoError
from runtime.security.signing import SecretKey, SecretStorage

_LOG = logging.getLogger(__name__)
SCHEMA_VERSION = 3
# the broker is told them, and a device whose answer was lost: so they are hidden, and not hashed
_SECRETS = frozenset({"password", "next_password", "broker_password"})
_FIRST_DIGEST = "0" * 64
_NAME = re.compile(r"[a-z0-9_-]{1,64}")
_KEY = re.compile(r"[0-9a-f]{64}")
_metadata = sa.MetaData()
_devices = sa.Table(
    "rengo_devices",
    _metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("public_key", sa.String(64), nullable=False, unique=True),
    sa.Column("client_id", sa.String(128), nullable=False),
    sa.Column("password", sa.Text, nullable=False),
    sa.Column("next_password", sa.Text, nullable=False),
    sa.Column("rotation", sa.Integer, nullable=False),
    sa.Column("group", sa.String(64), nullable=False),
    sa.Column("project", sa.String(64), nullable=False),
    sa.Column("index", sa.Integer, nullable=False),
    sa.Column("count", sa.Integer, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("token_id", sa.String(64), nullable=False),
    sa.Column("admitted_by", sa.String(64), nullable=False),
    sa.Column("admitted_at", sa.Float, nullable=False),
    sa.Column("digest", sa.String(64), nullable=False, server_default=""),
)
_tokens = sa.Table(
    "rengo_tokens",
    _metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("public_key", sa.String(64), nullable=False),
    sa.Column("broker_password", sa.Text, nullable=False),
    sa.Column("group", sa.String(64), nullable=False),
    sa.Column("project", sa.String(64), nullable=False),
    sa.Column("uses", sa.Integer, nullable=False),
    sa.Column("used", sa.Integer, nullable=False),
    sa.Column("expires_at", sa.Float, nullable=False),
    sa.Column("made_by", sa.String(64), nullable=False),
    sa.Column("made_at", sa.Float, nullable=False),
    sa.Column("digest", sa.String(64), nullable=False, server_default=""),
)
_audit = sa.Table(
    "rengo_audit",
    _metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("actor", sa.String(64), nullable=False),
    sa.Column("act", sa.String(64), nullable=False),
    sa.Column("subject", sa.String(128), nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
)
# the last entry that the retention removed: what the first one left follows
_removed_audit = sa.Table(
    "rengo_removed_audit",
    _metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("digest", sa.String(64), nullable=False),
)


@dataclass(frozen=True)
class AuditEntry:
    """One line of the audit log; ``digest`` is sha256 over the entry and the digest before."""

    number: int
    at: float
    actor: str
    act: str
    subject: str
    detail: dict[str, Any]
    digest: str


class AuditAltered(RengoError):
    """The audit log is not as it was written: somebody changed the database."""


class MemberRegistry:
    """Devices, tokens and the audit log in the server's database. One thread calls it.

    Args:
        database: the server's.
        key: the server's own, with which passwords are hidden.

    Raises:
        JournalUnusable: another version of Rengo wrote it.
        JournalError: as every method.
    """

    def __init__(self, database: Database, key: SecretKey) -> None:
        self._database = database
        self._secrets = SecretStorage(key)
        migrations = {1: self._hide_passwords, 2: _add_digests}
        database.prepare(_metadata, "registry_version", SCHEMA_VERSION, migrations)
        for table in (_devices, _tokens):
            self._set_aside_damaged(table)

    def devices(self) -> list[DeviceRecord]:
        """Return every device that was ever admitted, by id.

        One whose row was damaged has its name, and the status to show for it.
        """
        return self._rows(_devices, DeviceRecord)

    def tokens(self) -> list[TokenRecord]:
        """Return the tokens that are not forgotten, by id."""
        return self._rows(_tokens, TokenRecord)

    def write(
        self,
        acts: Sequence[AuditEvent],
        *,
        devices: Iterable[DeviceRecord] = (),
        tokens: Iterable[TokenRecord] = (),
        forget: Iterable[str] = (),
    ) -> None:
        """Write the changed records and what was done, all or nothing.

        Args:
            acts: for the audit log, in order.
            devices: new or changed.
            tokens: new or changed.
            forget: ids of tokens that go.
        """
        with self._database.change() as connection:
            for table, records in ((_devices, devices), (_tokens, tokens)):
                for record in records:
                    connection.execute(sa.delete(table).where(_replaced_by(table, record)))
                    row = self._hidden(asdict(record))
                    digest = _digest_of_row(table, row)
                    connection.execute(sa.insert(table), {**row, "digest": digest})
            for token_id in forget:
                connection.execute(sa.delete(_tokens).where(_tokens.c.id == token_id))
            append_audit(connection, acts)

    def audit(self, *, before: int | None = None, limit: int = 100) -> list[AuditEntry]:
        """Return the latest entries, the latest first, those before number ``before`` if given."""
        query = sa.select(_audit).order_by(_audit.c.number.desc()).limit(limit)
        if before is not None:
            query = query.where(_audit.c.number < before)
        with self._database.begin() as connection:
            return [_entry(row) for row in connection.execute(query).all()]

    def verify_audit(self) -> int:
        """Return how many entries the log has.

        Raises:
            AuditAltered: one was changed, removed or added behind this registry's back.
        """
        with self._database.begin() as connection:
            removed = connection.execute(sa.select(_removed_audit)).first()
            number, digest = (0, _FIRST_DIGEST) if removed is None else removed
            for row in connection.execute(sa.select(_audit).order_by(_audit.c.number)):
                number += 1
                digest = _digest(digest, row)
                if row.number != number or row.digest != digest:
                    raise AuditAltered(
                        f"the audit log in {self._database.name} was altered at entry {number}"
                    )
        return number

    def latest_audit(self) -> tuple[int, str]:
        """Return the number and the digest of the latest entry; of none, 0 and ""."""
        with self._database.begin() as connection:
            found = _latest(connection)
        return (0, "") if found is None else found

    def audit_digest(self, number: int) -> str | None:
        """Return the digest of an entry, None where there is none of this number."""
        query = sa.select(_audit.c.digest).where(_audit.c.number == number)
        with self._database.begin() as connection:
            return connection.execute(query).scalar()

    def remove_audit(self, before: float) -> int:
        """Remove the entries of before a Unix time, and return how many; the latest one stays.

        What is left can still be verified: it begins with the digest of the last one removed.
        """
        with self._database.begin() as connection:
            latest = _latest(connection)
            if latest is None:
                return 0
            query = sa.select(_audit.c.number, _audit.c.digest)
            old = query.where(_audit.c.at < before, _audit.c.number < latest[0])
            last = connection.execute(old.order_by(_audit.c.number.desc()).limit(1)).first()
            if last is None:
                return 0
            connection.execute(sa.delete(_removed_audit))
            connection.execute(sa.insert(_removed_audit), last._asdict())
            gone = sa.delete(_audit).where(_audit.c.number <= last.number)
            return connection.execute(gone).rowcount

    def _rows(self, table: sa.Table, record: Any) -> list[Any]:
        names = [each.name for each in fields(record)]
        found = [
            record(**{name: self._shown(name, row[name]) for name in names})
            for row in self._stored(table)
        ]
        return sorted(found, key=lambda each: str(each.id))

    def _stored(self, table: sa.Table) -> Sequence[Mapping[str, Any]]:
        # in no order: a damaged index gives some rows twice and others never
        with self._database.begin() as connection:
            rows: Sequence[Any] = connection.execute(sa.select(table)).mappings().all()
        return rows

    def _set_aside_damaged(self, table: sa.Table) -> None:
        """Put rows that say no more than who it was in the place of those that are damaged.

        The table is written anew as a whole: no row of it need be found by a damaged index.
        """
        rows = self._stored(table)
        sound = {row["id"]: dict(row) for row in rows if _is_sound(table, row)}
        damaged = [row for row in rows if not _is_sound(table, row)]
        if not damaged:
            return
        acts = []
        for row in damaged:
            kind = "device" if table is _devices else "token"
            name = row["id"] if _is_like(_NAME, row["id"]) else "of an unreadable name"
            acts.append(AuditEvent("server", f"{kind} damaged", name))
            _LOG.error(
                "what the journal holds of %s %s is damaged: it admits nobody; put a backup back, "
                "or let the device enrol by a new token",
                kind,
                name,
            )
            if table is _devices and name == row["id"]:
                left = self._hidden(asdict(_left_of_device(row)))
                sound.setdefault(name, {**left, "digest": _digest_of_row(table, left)})
        with self._database.change() as connection:
            connection.execute(sa.delete(table))
            if sound:
                connection.execute(sa.insert(table), list(sound.values()))
            append_audit(connection, acts)

    def _hidden(self, row: dict[str, Any]) -> dict[str, Any]:
        secrets = {name: self._secrets.hide(row[name]) for name in _SECRETS & row.keys()}
        return {**row, **secrets}

    def _shown(self, name: str, value: Any) -> Any:
        if name not in _SECRETS:
            return value
        try:
            return self._secrets.show(value)
        except PeerError as error:
            raise JournalUnusable(
                f"journal {self._database.name} holds a {name.replace('_', ' ')} that this "
                f"server's key does not open: {error}"
            ) from error

    def _hide_passwords(self, connection: sa.Connection) -> None:
        """Hide the passwords that an earlier version stored as they are."""
        for table in (_devices, _tokens):
            names = [column.name for column in table.columns if column.name in _SECRETS]
            if connection.dialect.name == "postgresql":
                for name in names:
                    kind = f"ALTER TABLE {table.name} ALTER COLUMN {name} TYPE TEXT"
                    connection.execute(sa.text(kind))
            query = sa.select(table.c.id, *(table.c[name] for name in names))
            for row in connection.execute(query).mappings().all():
                hidden = {name: self._secrets.hide(row[name]) for name in names}
                connection.execute(sa.update(table).where(table.c.id == row["id"]).values(hidden))


def _add_digests(connection: sa.Connection) -> None:
    """Give the rows that an earlier version wrote their digests, as they are now."""
    for table in (_devices, _tokens):
        add_column(connection, table.c.digest)
        for row in connection.execute(sa.select(table)).mappings().all():
            digest = _digest_of_row(table, row)
            of_row = sa.update(table).where(table.c.id == row["id"])
            connection.execute(of_row.values(digest=digest))


def _digest_of_row(table: sa.Table, row: Mapping[Any, Any]) -> str:
    """Return the digest over a row as it is stored, secrets hidden."""
    content = [row[column.name] for column in table.columns if column is not table.c.digest]
    return hashlib.sha256(json.dumps([table.name, content], default=repr).encode()).hexdigest()


def _is_sound(table: sa.Table, row: Mapping[str, Any]) -> bool:
    return bool(row["digest"] == _digest_of_row(table, row))


def _is_like(pattern: re.Pattern[str], value: Any) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _left_of_device(row: Mapping[str, Any]) -> DeviceRecord:
    """Return what is left of a device whose row is damaged; what reads as revoked stays so."""
    name, key = row["id"], row["public_key"]
    return DeviceRecord(
        name,
        # else one that nobody has: each row has its own
        key if _is_like(_KEY, key) else hashlib.sha256(name.encode()).hexdigest(),
        row["client_id"] if _is_like(_NAME, row["client_id"]) else name,
        "",
        status="revoked" if row["status"] in {"revoking", "revoked"} else "damaged",
    )


def _replaced_by(table: sa.Table, record: DeviceRecord | TokenRecord) -> Any:
    """Return which rows make way for a record: its own, and a damaged one with its key."""
    own = table.c.id == record.id
    if table is not _devices:
        return own
    of_key = sa.and_(table.c.status == "damaged", table.c.public_key == record.public_key)
    return sa.or_(own, of_key)


def append_audit(connection: sa.Connection, acts: Sequence[AuditEvent]) -> None:
    """Write to the audit log within a transaction of the caller's."""
    if not acts:
        return
    number, digest = _latest(connection) or (0, _FIRST_DIGEST)
    for act in acts:
        number += 1
        row = _Row(
            number,
            time.time(),
            act.actor[:64],
            act.act[:64],
            act.subject[:128],
            json.dumps(act.detail, sort_keys=True),
        )
        digest = _digest(digest, row)
        connection.execute(sa.insert(_audit), {**asdict(row), "digest": digest})


def _latest(connection: sa.Connection) -> tuple[int, str] | None:
    query = sa.select(_audit.c.number, _audit.c.digest).order_by(_audit.c.number.desc())
    row = connection.execute(query.limit(1)).first()
    return None if row is None else (row.number, row.digest)


@dataclass(frozen=True)
class _Row:
    number: int
    at: float
    actor: str
    act: str
    subject: str
    detail: str


def _digest(before: str, row: Any) -> str:
    content = [before, row.number, row.at, row.actor, row.act, row.subject, row.detail]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _entry(row: Any) -> AuditEntry:
    return AuditEntry(
        row.number, row.at, row.actor, row.act, row.subject, json.loads(row.detail), row.digest
    )
