"""The messages, one module for each area, and their codec; users import from here."""

from __future__ import annotations

from broker.wire.limits import MAX_EXCHANGE_BYTES, MAX_MESSAGE_BYTES
from broker.wire.messages.base import Action, KeyText, Message, Sha256, WireModel
from broker.wire.messages.codec import (
    MAX_NESTING,
    SCHEMA_VERSION,
    Envelope,
    RefusedBody,
    decode,
    encode,
)
from broker.wire.messages.enrolment import (
    Claim,
    ClaimAnswer,
    IdentityNotice,
    NewPassword,
    PasswordKept,
)
from broker.wire.messages.kinds import KINDS
from broker.wire.messages.operators import OperatorReply, OperatorRequest
from broker.wire.messages.orders import (
    Decline,
    Order,
    OrderAnswer,
    OrderMessage,
    Progress,
    Receipt,
    Request,
    Result,
    Usage,
)
from broker.wire.messages.presence import DeviceState, ServerState
from broker.wire.messages.production import (
    ModelOffer,
    ModelRequest,
    ProductionDocument,
)
from broker.wire.messages.references import (
    MAX_PARTS,
    BundleRef,
    ModelRef,
    PartsRef,
    Patch,
    UpdateRef,
    UploadRef,
)
from broker.wire.messages.reports import (
    Bar,
    Compute,
    DataReport,
    DeviceHealth,
    DeviceInfo,
    Quantity,
    TaskData,
)
from broker.wire.messages.runs import RunDocument, RunEvent, RunStatus
from broker.wire.messages.tree import (
    MAX_TREE_DEPTH,
    MAX_TREE_MEMBERS,
    TREE_VERSION,
    Ancestor,
    TreeMember,
    TreePosition,
    TreeRun,
    TreeSummary,
)

__all__ = [
    "Action",
    "Ancestor",
    "Bar",
    "BundleRef",
    "Claim",
    "ClaimAnswer",
    "Compute",
    "DataReport",
    "Decline",
    "DeviceHealth",
    "DeviceInfo",
    "DeviceState",
    "Envelope",
    "IdentityNotice",
    "KINDS",
    "KeyText",
    "MAX_EXCHANGE_BYTES",
    "MAX_MESSAGE_BYTES",
    "MAX_NESTING",
    "MAX_PARTS",
    "MAX_TREE_DEPTH",
    "MAX_TREE_MEMBERS",
    "Message",
    "ModelOffer",
    "ModelRef",
    "ModelRequest",
    "NewPassword",
    "OperatorReply",
    "OperatorRequest",
    "Order",
    "PartsRef",
    "PasswordKept",
    "Patch",
    "ProductionDocument",
    "Progress",
    "Quantity",
    "Receipt",
    "RefusedBody",
    "Request",
    "Result",
    "RunDocument",
    "RunEvent",
    "RunStatus",
    "SCHEMA_VERSION",
    "ServerState",
    "OrderAnswer",
    "OrderMessage",
    "Sha256",
    "TREE_VERSION",
    "TaskData",
    "TreeMember",
    "TreePosition",
    "TreeRun",
    "TreeSummary",
    "UpdateRef",
    "UploadRef",
    "Usage",
    "WireModel",
    "decode",
    "encode",
]
