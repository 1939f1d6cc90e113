"""The requests of an operator, and their answers."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from broker.wire.messages.base import Detail, Id, Message, Text


class OperatorRequest(Message):
    """An operator asks the server for one operation."""

    kind = "operator_request"
    channel = ("op", "request")
    request_id: Id
    operation: Annotated[str, Field(pattern=r"^[a-z_]{1,64}$")]
    arguments: Detail


class OperatorReply(Message):
    """The answer; ``error`` is empty on success, ``exit_code`` is the command line's."""

    kind = "operator_reply"
    channel = ("op", "reply")
    request_id: Id
    result: Detail
    error: Text = ""
    exit_code: Annotated[int, Field(ge=0, le=255)] = 0
