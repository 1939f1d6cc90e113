"""Answers to messages that are well signed and whose body is out of bounds.

Who sent one waits for an answer, and would send the same again for ever. Called on the owner's
thread.
"""

from __future__ import annotations

from collections.abc import Callable

from pydantic import TypeAdapter, ValidationError

from broker.wire.messages import OperatorRequest, OrderAnswer, Receipt, RefusedBody, Result
from broker.wire.messages.base import Id
from fl_server.flows.events import DeviceDeclined
from fl_server.shell.connection import ServerConnection
from fl_server.shell.runner import FlowRunner

_ID: TypeAdapter[str] = TypeAdapter(Id)


class RefusedBodies:
    """Tells senders, and the runs that wait for them, what was out of which bounds.

    Args:
        refuse: answers an operator's request, by both ids, with a reason.
    """

    def __init__(
        self,
        connection: ServerConnection,
        runner: FlowRunner,
        refuse: Callable[[str, str, str], None],
    ) -> None:
        self._connection = connection
        self._runner = runner
        self._refuse = refuse

    def answer(self, sender: str, refused: RefusedBody) -> None:
        """Answer a result with a receipt, a request with a reply, and nothing else."""
        if refused.kind is Result:
            self._refuse_result(sender, refused)
        elif refused.kind is OperatorRequest:
            try:
                request_id = _ID.validate_python(refused.body.get("request_id"))
            except ValidationError:
                return
            self._refuse(sender, request_id, str(refused))

    def _refuse_result(self, device_id: str, refused: RefusedBody) -> None:
        names = OrderAnswer.model_fields.keys() & refused.body.keys()
        try:
            order = OrderAnswer.model_validate({name: refused.body[name] for name in names})
        except ValidationError:
            return
        reason = str(refused)[:2000]
        receipt = Receipt(**dict(order), status="refused", reason=reason)
        self._connection.publish_receipt(device_id, receipt)
        if order.run_id in self._runner.flows:
            place = (device_id, order.action, order.round, order.attempt)
            told = DeviceDeclined(*place, reason, order.phase, order.seq, unusable=True)
            self._runner.handle(order.run_id, told)
