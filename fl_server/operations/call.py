"""One submitted operation: who asks, what its handler may do for it, and its answer."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, ValidationError

from fl_server.members.rules import AuditEvent
from fl_server.members.store import append_audit
from fl_server.operations.catalogue import A, CallerRole, Operation, R
from fl_server.operations.requests import RequestLog, RequestRecord
from fl_server.operations.results.base import OperationResult
from fl_server.persistence.database import sa
from runtime.errors import ConfigError, InvalidTransition, NotFound, RengoError
from runtime.security.signing import SecretKey

Fault: TypeAlias = Literal["", "usage", "not_found", "forbidden", "failed"]
_SALT_BYTES = 16
_STORED_BYTES = 64_000


class Forbidden(ConfigError):
    """The caller's role does not allow the operation."""


@dataclass(frozen=True)
class Caller:
    """Who asks: an id that an adapter has verified, and what it may do."""

    id: str
    role: CallerRole


@dataclass(frozen=True)
class Outcome:
    """What came of an operation: a result, or why there is none.

    Attributes:
        fault: "" where there is a result; else what an adapter makes its status of.
    """

    result: OperationResult | None
    error: str = ""
    fault: Fault = ""

    @classmethod
    def failed(cls, error: RengoError) -> Outcome:
        """Return the outcome that an error means."""
        fault: Fault = "failed"
        if isinstance(error, Forbidden):
            fault = "forbidden"
        elif isinstance(error, NotFound):
            fault = "not_found"
        elif isinstance(error, ConfigError):
            fault = "usage"
        return cls(None, str(error)[:2000], fault)

    def stored(self) -> str:
        """Return it as JSON for the table of requests, without the end of a very long one."""
        result = None if self.result is None else self.result.fitted(_STORED_BYTES).document()
        return _StoredOutcome(result=result, error=self.error, fault=self.fault).model_dump_json()

    @classmethod
    def restored(cls, text: str, operation: Operation[Any, Any]) -> Outcome:
        """Return what :meth:`stored` wrote."""
        stored = _StoredOutcome.model_validate_json(text)
        result = None if stored.result is None else operation.result.read(stored.result)
        return cls(result, stored.error, stored.fault)


class _StoredOutcome(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    result: dict[str, Any] | None
    error: str
    fault: Fault


@dataclass
class Answer:
    """The outcome of a submitted operation, now or later. One thread uses it, the owner's."""

    outcome: Outcome | None = None
    _waiting: list[Callable[[Outcome], None]] = field(default_factory=list)

    def then(self, action: Callable[[Outcome], None]) -> None:
        """Call ``action`` with the outcome: at once where there is one, else when it comes."""
        if self.outcome is None:
            self._waiting.append(action)
        else:
            action(self.outcome)

    def give(self, outcome: Outcome) -> None:
        """Set the outcome and call those who wait for it."""
        if self.outcome is not None:
            raise InvalidTransition("an operation was answered twice")
        self.outcome = outcome
        for action in self._waiting:
            action(outcome)
        self._waiting.clear()


@dataclass(frozen=True)
class Deferred(Generic[R]):
    """The result comes later: ``work`` off the owner's thread, then ``then`` on it.

    Attributes:
        in_order: after what was begun before: changes of the registry, or a run's byte work.
        run_id: whose byte work; "" for the registry.
    """

    work: Callable[[], Any]
    then: Callable[[Any], R | Deferred[R]]
    in_order: bool = False
    run_id: str = ""


def behind_byte_work(act: Callable[[], R | Deferred[R]], run_id: str = "") -> Deferred[R]:
    """Act after what was begun before: the registry's reading and changes, or a run's byte work."""
    return Deferred(_nothing, lambda _: act(), in_order=True, run_id=run_id)


def _nothing() -> None:
    """What comes after it matters."""


@dataclass
class Call:
    """One request, as its handler sees it.

    Attributes:
        repeated: an earlier life of the server began it, or answered it where no answer is stored.
        recorded: what the database holds of it is final.
    """

    record: RequestRecord
    log: RequestLog
    secret: SecretKey = field(repr=False)
    repeated: bool = False
    recorded: bool = False

    @property
    def caller(self) -> str:
        """The id of who asks."""
        return self.record.key.caller

    def derive(self, purpose: str) -> bytes:
        """Return 32 secret bytes that are the same whenever this request comes."""
        if not self.record.salt:
            self.record = replace(self.record, salt=secrets.token_hex(_SALT_BYTES))
        seed = bytes.fromhex(self.secret.text) + bytes.fromhex(self.record.salt)
        return bytes.fromhex(SecretKey.derive(seed, purpose).text)

    def plan(self, result: OperationResult) -> None:
        """Keep the result that cannot be told after the effect, which is yet to be made."""
        self.record = replace(self.record, planned=result.model_dump_json())
        self.log.save(self.record)

    def planned(self, kind: type[R]) -> R | None:
        """Return the result that an earlier life of the server has planned."""
        return kind.model_validate_json(self.record.planned) if self.record.planned else None

    def together(
        self,
        result: Callable[[], OperationResult],
        acts: Callable[[], Sequence[AuditEvent]] = tuple,
    ) -> AbstractContextManager[None]:
        """Write the answer and ``acts`` with the first change of the block, in one transaction.

        Args:
            result: called just before that transaction is committed.
            acts: likewise, for the audit log.
        """

        def write(connection: sa.Connection) -> None:
            append_audit(connection, acts())
            self._finish(connection, Outcome(_certain(result)))

        return self.log.database.together(write)

    def identified(self) -> AbstractContextManager[None]:
        """Write the salt with the first change of the block, in one transaction."""
        return self.log.database.together(self._write_salt)

    def conclude(self, result: R, *acts: AuditEvent) -> R:
        """Write the answer and ``acts`` after the effect; return the answer."""
        self.finish(Outcome(result), acts)
        return result

    def finish(self, outcome: Outcome, acts: Sequence[AuditEvent] = ()) -> None:
        """Write the answer and ``acts``, unless that was done with the effect."""
        if self.recorded:
            return
        with self.log.database.begin() as connection:
            append_audit(connection, acts)
            self._finish(connection, outcome)

    def _finish(self, connection: sa.Connection, outcome: Outcome) -> None:
        done = replace(self.record, arguments="", planned="", outcome=outcome.stored())
        self.log.write(connection, done)
        self.recorded = True

    def _write_salt(self, connection: sa.Connection) -> None:
        self.log.write(connection, self.record)
        self.recorded = True


def _certain(result: Callable[[], OperationResult]) -> OperationResult:
    """Return a result within a change that must not be given up any more."""
    try:
        return result()
    except ValidationError as error:
        raise InvalidTransition(f"the result of a change cannot be told: {error}") from error


@dataclass(frozen=True)
class Binding(Generic[A, R]):
    """An operation and what carries it out."""

    operation: Operation[A, R]
    handler: Callable[[A, Call], R | Deferred[R]]
