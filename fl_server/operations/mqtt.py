"""The desk: takes operators' requests from MQTT to the operations and brings the answers back."""

from __future__ import annotations

from collections.abc import Callable

from broker.wire.messages import OperatorReply, OperatorRequest
from fl_server.dataplane.plane import DataPlane
from fl_server.operations.arguments import Deferred, Result
from fl_server.operations.runs import Operations
from fl_server.persistence.database import JournalError
from runtime.errors import ConfigError, InvalidTransition, NotFound, PeerError, RengoError

_USAGE, _FAILED = 2, 3


class OperatorEndpoint:
    """Every request gets one reply, now or when its deferred work has ended.

    Args:
        reply: publishes a reply to an operator.
    """

    def __init__(
        self,
        operations: Operations,
        data: DataPlane,
        reply: Callable[[str, OperatorReply], None],
    ) -> None:
        self._operations = operations
        self._data = data
        self._reply = reply
        self._underway: set[tuple[str, str]] = set()

    def handle(self, operator_id: str, request: OperatorRequest) -> None:
        """Carry out one request; called on the owner's thread."""
        asked = (operator_id, request.request_id)
        if asked in self._underway:
            return  # asked again because it takes long: the answer is on its way
        self._underway.add(asked)

        def answer(result: Result) -> None:
            self._underway.discard(asked)
            reply = OperatorReply(request_id=request.request_id, result=result)
            self._reply(operator_id, reply)

        def fail(error: RengoError) -> None:
            self._underway.discard(asked)
            usage = isinstance(error, ConfigError | NotFound)
            reply = OperatorReply(
                request_id=request.request_id,
                result={},
                error=str(error)[:2000],
                exit_code=_USAGE if usage else _FAILED,
            )
            self._reply(operator_id, reply)

        _attempt(lambda: self._call(operator_id, request, answer, fail), fail)

    def _call(
        self,
        operator_id: str,
        request: OperatorRequest,
        answer: Callable[[Result], None],
        fail: Callable[[RengoError], None],
    ) -> None:
        outcome = self._operations.call(request.operation, request.arguments, operator_id)
        self._finish(outcome, answer, fail)

    def _finish(
        self,
        outcome: Result | Deferred,
        answer: Callable[[Result], None],
        fail: Callable[[RengoError], None],
    ) -> None:
        if not isinstance(outcome, Deferred):
            answer(outcome)
            return
        then = outcome.then
        self._data.start_task(
            outcome.work,
            lambda value: _attempt(lambda: self._finish(then(value), answer, fail), fail),
            fail,
            in_order=outcome.in_order,
        )


def _attempt(action: Callable[[], None], fail: Callable[[RengoError], None]) -> None:
    try:
        action()
    except (PeerError, InvalidTransition, JournalError):
        raise  # a machine may be ahead of its journal: this process must not go on
    except RengoError as error:
        fail(error)
