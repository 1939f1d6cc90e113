"""The fixed table of the messages that are understood: nothing else is ever decoded."""

from __future__ import annotations

from broker.wire.messages.base import Message
from broker.wire.messages.enrolment import (
    Claim,
    ClaimAnswer,
    IdentityNotice,
    NewPassword,
    PasswordKept,
)
from broker.wire.messages.operators import OperatorReply, OperatorRequest
from broker.wire.messages.orders import Decline, Order, Progress, Receipt, Request, Result
from broker.wire.messages.presence import DeviceState, ServerState
from broker.wire.messages.production import ModelOffer, ModelRequest, ProductionDocument
from broker.wire.messages.reports import DataReport, DeviceHealth, DeviceInfo
from broker.wire.messages.runs import RunDocument, RunEvent
from broker.wire.messages.tree import TreePosition

KINDS: dict[str, type[Message]] = {
    message.kind: message
    for message in (
        ServerState,
        DeviceState,
        DeviceInfo,
        DeviceHealth,
        DataReport,
        Order,
        Decline,
        Progress,
        Result,
        Request,
        Receipt,
        NewPassword,
        PasswordKept,
        IdentityNotice,
        Claim,
        ClaimAnswer,
        RunDocument,
        RunEvent,
        ProductionDocument,
        ModelRequest,
        ModelOffer,
        OperatorRequest,
        OperatorReply,
        TreePosition,
    )
}
