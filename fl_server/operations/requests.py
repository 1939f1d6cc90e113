"""The requests that changed something, with their answers: each takes effect at most once.

A row is written in the transaction of the effect, or before the first step of an effect outside the
database. Of each caller the latest thousand are kept, which no clock decides: a client repeats a
request for minutes at most, and one request at a time. Those of a caller who was removed go at the
next start.

No secret lies here: an answer that holds one (a join token, upload URLs) is not stored. Such a row
holds a random salt, from which, with the server's own key, the same secret comes again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from fl_server.persistence.database import Database, sa

SCHEMA_VERSION = 1
KEPT_PER_CALLER = 1000
_metadata = sa.MetaData()
_requests = sa.Table(
    "rengo_requests",
    _metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("caller", sa.String(64), nullable=False),
    sa.Column("request_id", sa.String(64), nullable=False),
    sa.Column("operation", sa.String(64), nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("salt", sa.String(64), nullable=False),
    sa.Column("arguments", sa.Text, nullable=False),
    sa.Column("planned", sa.Text, nullable=False),
    sa.Column("outcome", sa.Text, nullable=False),
    sa.UniqueConstraint("caller", "request_id"),
)


@dataclass(frozen=True)
class RequestKey:
    """What tells one request from every other."""

    caller: str
    request_id: str


@dataclass(frozen=True)
class RequestRecord:
    """A request as the database has it.

    Attributes:
        digest: of the operation and its arguments.
        salt: what derived ids and secrets come from, in hex; "" where none do.
        arguments: as JSON, only while its effect is being made outside the database.
        planned: the result as JSON, where it cannot be told after the effect.
        outcome: the answer as JSON, "" while there is none or where none is stored.
    """

    key: RequestKey
    operation: str
    digest: str
    salt: str = ""
    arguments: str = ""
    planned: str = ""
    outcome: str = ""


def digest_of(operation: str, arguments: Mapping[str, Any]) -> str:
    """Return what two requests share that ask for the same."""
    text = json.dumps([operation, arguments], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


class RequestLog:
    """The table of requests. One thread uses it.

    Raises:
        JournalUnusable: another version of Rengo wrote it.
        JournalError: as every method.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        database.prepare(_metadata, "requests_version", SCHEMA_VERSION)

    def find(self, key: RequestKey) -> RequestRecord | None:
        """Return the record of a request, None where there is none (any more)."""
        with self.database.begin() as connection:
            row = connection.execute(sa.select(_requests).where(*_is(key))).first()
        return None if row is None else _record(row)

    def unfinished(self) -> list[RequestRecord]:
        """Return the requests whose effect a kill may have interrupted, the oldest first."""
        query = sa.select(_requests).where(_requests.c.arguments != "").order_by(_requests.c.number)
        with self.database.begin() as connection:
            return [_record(row) for row in connection.execute(query).all()]

    def forget_callers(self, known: Collection[str]) -> None:
        """Remove the requests of everybody who may ask nothing any more.

        What is unfinished stays, so that its effect is completed whoever asked for it.
        """
        gone = _requests.c.caller.not_in(known) & (_requests.c.arguments == "")
        with self.database.begin() as connection:
            connection.execute(sa.delete(_requests).where(gone))

    def save(self, record: RequestRecord) -> None:
        """Write a record, in a transaction of its own."""
        with self.database.begin() as connection:
            self.write(connection, record)

    def write(self, connection: sa.Connection, record: RequestRecord) -> None:
        """Write a record within a transaction of the caller's, and drop those that are too many."""
        key = record.key
        values = {name: value for name, value in vars(record).items() if name != "key"}
        changed = connection.execute(sa.update(_requests).where(*_is(key)).values(values)).rowcount
        if changed:
            return
        row = {**values, "caller": key.caller, "request_id": key.request_id}
        connection.execute(sa.insert(_requests), row)
        oldest = (
            sa.select(_requests.c.number)
            .where(_requests.c.caller == key.caller)
            .order_by(_requests.c.number.desc())
            .offset(KEPT_PER_CALLER)
            .limit(1)
        )
        last = connection.execute(oldest).scalar()
        if last is not None:
            connection.execute(
                sa.delete(_requests).where(
                    _requests.c.caller == key.caller,
                    _requests.c.number <= last,
                    _requests.c.arguments == "",
                )
            )


def _is(key: RequestKey) -> tuple[sa.ColumnElement[bool], ...]:
    return (_requests.c.caller == key.caller, _requests.c.request_id == key.request_id)


def _record(row: Any) -> RequestRecord:
    return RequestRecord(
        RequestKey(row.caller, row.request_id),
        row.operation,
        row.digest,
        row.salt,
        row.arguments,
        row.planned,
        row.outcome,
    )
