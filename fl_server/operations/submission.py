"""What an operator can do, submitted: one way for every adapter, the command line's and the web's.

A request that changes something takes effect at most once, however often it comes and whenever the
server is killed; how, its operation's :class:`~fl_server.operations.catalogue.Effect` says. All is
called on the owner's thread.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fl_server.operations.arguments import Arguments
from fl_server.operations.call import (
    Answer,
    Binding,
    Call,
    Caller,
    Deferred,
    Forbidden,
    Outcome,
    behind_byte_work,
)
from fl_server.operations.catalogue import OPERATIONS, Effect, may_act_as
from fl_server.operations.context import OperationsContext
from fl_server.operations.handlers.bundles import BundleOperations
from fl_server.operations.handlers.cleanup import CleanupOperations
from fl_server.operations.handlers.devices import DeviceOperations
from fl_server.operations.handlers.extension import ExtensionOperations
from fl_server.operations.handlers.labels import LabelOperations
from fl_server.operations.handlers.models import ModelOperations
from fl_server.operations.handlers.runs import RunOperations
from fl_server.operations.handlers.topology import TopologyOperations
from fl_server.operations.requests import RequestKey, RequestLog, RequestRecord, digest_of
from fl_server.operations.results.base import OperationResult
from fl_server.persistence.database import JournalError
from runtime.config import validate
from runtime.errors import ConfigError, InvalidTransition, PeerError, RengoError

_LOG = logging.getLogger(__name__)
_STORED = frozenset({Effect.RECORDED, Effect.RESUMED})


@dataclass
class _Submission:
    """A request whose answer is not known yet."""

    binding: Binding[Any, Any]
    arguments: Arguments
    record: RequestRecord
    answer: Answer = field(default_factory=Answer)

    @property
    def effect(self) -> Effect:
        effect: Effect = self.binding.operation.effect
        return effect

    def start(self, call: Call) -> OperationResult | Deferred[Any]:
        """Begin to carry it out; what the object store is changed by waits for its registry."""
        handler, arguments = self.binding.handler, self.arguments
        if self.effect is Effect.RESUMED:
            return behind_byte_work(lambda: handler(arguments, call))
        started: OperationResult | Deferred[Any] = handler(arguments, call)
        return started


class Operations:
    """The operations of one server."""

    def __init__(self, context: OperationsContext) -> None:
        self._context = context
        self._log = RequestLog(context.journal.database)
        self._underway: dict[RequestKey, _Submission] = {}
        # those that an earlier life of the server began, and what waits for their end
        self._resuming: set[RequestKey] = set()
        self._held: list[_Submission] = []
        runs = RunOperations(context)
        groups = (
            DeviceOperations(context),
            LabelOperations(context),
            runs,
            ModelOperations(context),
            CleanupOperations(context, runs),
            BundleOperations(context, runs),
            ExtensionOperations(context, runs),
            TopologyOperations(context),
        )
        bindings = {each.operation.name: each for group in groups for each in group.bindings()}
        self._table: dict[str, Binding[Any, Any]] = {name: bindings[name] for name in OPERATIONS}

    def submit(
        self, operation: str, arguments: Mapping[str, Any], caller: Caller, request_id: str = ""
    ) -> Answer:
        """Do one operation and return its answer, which may come later.

        Args:
            operation: its name.
            arguments: as JSON has them.
            caller: whose identity and role the adapter has verified.
            request_id: the caller's own name of this request, the same when it asks again; "" where
                it never does.
        """
        try:
            binding = self._binding(operation, caller)
            checked = validate(binding.operation.arguments, arguments, operation)
            record = RequestRecord(
                RequestKey(caller.id, request_id or secrets.token_hex(16)),
                operation,
                digest_of(operation, checked.model_dump(mode="json")),
            )
            known = self._underway.get(record.key)
            if known is not None:
                _require_same(known.record, record)
                return known.answer
        except ConfigError as error:
            return Answer(Outcome.failed(error))
        submission = self._underway[record.key] = _Submission(binding, checked, record)
        if self._resuming and submission.effect is Effect.RESUMED:
            self._held.append(submission)
        else:
            self._begin(submission)
        return submission.answer

    def resume(self) -> None:
        """Complete the changes of the object store that the end of the process interrupted."""
        self._log.forget_callers(self._context.members.operators)
        for record in self._log.unfinished():
            try:
                binding, arguments = self._read(record)
            except ConfigError as error:
                _LOG.error("a request of %s is given up: %s", record.key.caller, error)
                outcome = Outcome.failed(error).stored()
                self._log.save(replace(record, arguments="", planned="", outcome=outcome))
                continue
            submission = self._underway[record.key] = _Submission(binding, arguments, record)
            self._resuming.add(record.key)
            _LOG.info("completing %s of %s", record.operation, record.key.caller)
            self._carry_out(submission, self._call(record, repeated=True), submission.start)

    def _read(self, record: RequestRecord) -> tuple[Binding[Any, Any], Arguments]:
        """Return what an unfinished request asks for.

        Raises:
            ConfigError: it is not as it was written, or of a version that has other operations.
        """
        binding = self._table.get(record.operation)
        try:
            if digest_of(record.operation, json.loads(record.arguments)) != record.digest:
                raise ValueError
            if binding is None:
                raise ConfigError(f"this version has no operation {record.operation!r}")
            return binding, binding.operation.arguments.model_validate_json(record.arguments)
        except ValueError as error:
            raise ConfigError(f"{record.operation} is damaged in the journal") from error

    def _binding(self, operation: str, caller: Caller) -> Binding[Any, Any]:
        binding = self._table.get(operation)
        if binding is None:
            raise ConfigError(f"no operation {operation!r}; there are: {', '.join(self._table)}")
        if not may_act_as(caller.role, binding.operation.role):
            raise Forbidden(
                f"{operation} is for an {binding.operation.role}; {caller.id} is a {caller.role}"
            )
        return binding

    def _begin(self, submission: _Submission) -> None:
        record, effect = submission.record, submission.effect
        stored = None if effect is Effect.NONE else self._log.find(record.key)
        if stored is None:
            if effect is Effect.RESUMED:
                record = replace(record, arguments=submission.arguments.model_dump_json())
                self._log.save(record)
            self._carry_out(submission, self._call(record), submission.start)
            return
        try:
            _require_same(stored, record)
        except ConfigError as error:
            self._end(submission, Outcome.failed(error))
            return
        if stored.outcome:
            self._end(submission, Outcome.restored(stored.outcome, submission.binding.operation))
            return
        self._carry_out(submission, self._call(stored, repeated=True), submission.start)

    def _call(self, record: RequestRecord, *, repeated: bool = False) -> Call:
        return Call(record, self._log, self._context.secret, repeated)

    def _carry_out(
        self,
        submission: _Submission,
        call: Call,
        step: Callable[[Call], OperationResult | Deferred[Any]],
    ) -> None:
        """Do one step; what it defers is done on a thread, and goes on here with the next."""
        doing = f"{submission.record.operation} of {submission.record.key.caller}"

        def fail(reason: str) -> None:
            if submission.answer.outcome is None:
                self._conclude(submission, call, Outcome(None, reason, "failed"))

        with self._context.faults.caught(doing, fail):
            outcome = self._outcome(submission, call, step)
            if outcome is not None:
                self._conclude(submission, call, outcome)

    def _outcome(
        self,
        submission: _Submission,
        call: Call,
        step: Callable[[Call], OperationResult | Deferred[Any]],
    ) -> Outcome | None:
        """Return what came of one step, None where the next one is begun."""
        try:
            result = step(call)
        except (PeerError, InvalidTransition, JournalError):
            raise  # not the fault of who asked
        except RengoError as error:
            return Outcome.failed(error)
        if not isinstance(result, Deferred):
            return Outcome(result)
        then = result.then
        self._context.data.start_task(
            result.work,
            lambda value: self._carry_out(submission, call, lambda _: then(value)),
            lambda error: self._conclude(submission, call, Outcome.failed(error)),
            in_order=result.in_order,
            run_id=result.run_id,
        )
        return None

    def _conclude(self, submission: _Submission, call: Call, outcome: Outcome) -> None:
        if submission.effect in _STORED:
            call.finish(outcome)
        self._end(submission, outcome)

    def _end(self, submission: _Submission, outcome: Outcome) -> None:
        key = submission.record.key
        del self._underway[key]
        submission.answer.give(outcome)
        if key in self._resuming:
            self._resuming.discard(key)
            held, self._held = ([], self._held) if self._resuming else (self._held, [])
            for each in held:
                self._begin(each)


def _require_same(known: RequestRecord, record: RequestRecord) -> None:
    """Raise where a request id stands for another request already."""
    if known.digest != record.digest:
        raise ConfigError(
            f"request {record.key.request_id} was {known.operation} with other arguments; "
            "a new request needs a new id"
        )
