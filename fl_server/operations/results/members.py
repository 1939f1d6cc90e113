"""What operations on the server and its members return. Pure."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from broker.wire.messages import (
    Action,
    DataReport,
    Decline,
    DeviceHealth,
    DeviceInfo,
    KeyText,
    Sha256,
)
from broker.wire.messages.base import Round
from broker.wire.messages.orders import Traceback
from fl_server.operations.arguments import Name
from fl_server.operations.results.base import (
    MAX_DEVICES,
    Count,
    Finite,
    Listing,
    OperationResult,
    Short,
    Text,
    encoded_bytes,
)
from fl_server.selection.traits import DeviceTraits


class ServerInfo(OperationResult):
    """What a server is and what it has refused."""

    domain: Name
    epoch: Count
    runs: Count
    devices_online: Count
    refused_messages: Annotated[dict[Short, Count], Field(max_length=128)]


class LastDecline(OperationResult):
    """The last order that a device declined since the server's start, and why.

    ``traceback``: the end of that of an error of the task's own code.
    """

    run_id: Name
    action: Action
    round: Round
    at: Finite
    reason: Text
    traceback: Traceback

    @classmethod
    def of(cls, decline: Decline, at: float) -> Self:
        """Return what a decline said at Unix time ``at``."""
        return cls(
            run_id=decline.run_id,
            action=decline.action,
            round=decline.round,
            at=at,
            reason=decline.reason,
            traceback=decline.traceback,
        )


class DeviceRow(OperationResult):
    """What is known of a device: as a member, by its presence, and by its own reports.

    What is not known has no key in the document, but for ``info``, which is null then.
    """

    id: Name
    status: Literal[
        "enrolled",
        "revoked",
        "damaged",
        "ready",
        "training",
        "draining",
        "late",
        "offline",
        "lost",
    ]
    role: Literal["trainer", "evaluator", "-"]
    tasks: Annotated[list[Text], Field(max_length=64)]
    info: DeviceInfo | None
    boot_id: Name | None = None
    bundles: Annotated[list[Text], Field(max_length=64)] | None = None
    group: Annotated[str, Field(max_length=64)] | None = None
    project: Annotated[str, Field(max_length=64)] | None = None
    public_key: KeyText | None = None
    token: Annotated[str, Field(max_length=64)] | None = None
    admitted_by: Annotated[str, Field(max_length=64)] | None = None
    admitted_at: Finite | None = None
    rotating: bool | None = None
    operator_labels: Annotated[dict[Short, Short], Field(max_length=64)] | None = None
    health: DeviceHealth | None = None
    data_report: DataReport | None = None
    last_decline: LastDecline | None = None

    @model_serializer(mode="wrap")
    def _without_unknown(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = handler(self)
        return {key: each for key, each in found.items() if each is not None or key == "info"}

    @property
    def traits(self) -> DeviceTraits:
        """What runs may choose it by."""
        return DeviceTraits(self.id, self.info, self.group or "", self.operator_labels or {})

    def fitted(self, size_bytes: int) -> Self:
        """Return it without what a device says too much of itself."""
        row = self
        for dropped in ("data_report", "health", "last_decline", "info"):
            if encoded_bytes(row) <= size_bytes:
                break
            less: dict[str, Any] = (
                {"info": None, "tasks": []} if dropped == "info" else {dropped: None}
            )
            row = row.model_copy(update=less)
        return row


class DeviceList(Listing):
    """Every device that was ever admitted or heard of, by id."""

    rows_key, id_key = "devices", "id"
    devices: Annotated[list[DeviceRow], Field(max_length=MAX_DEVICES)]


class NewToken(OperationResult):
    """A join token; the server keeps only what it is checked by."""

    token: Annotated[str, Field(max_length=512, repr=False)]
    token_id: Name
    url: Annotated[str, Field(max_length=512)]


class Admitted(OperationResult):
    """Which of the devices are (still) revoked."""

    revoked: Annotated[list[Name], Field(max_length=MAX_DEVICES)]


class Rotation(OperationResult):
    """A password that is being changed; ``online``: whether its device is there to get it now."""

    device_id: Name
    online: bool


class Revoked(OperationResult):
    """The device or join token that was taken out."""

    revoked: Name


class Labelled(OperationResult):
    """What an operator's labels of a device are by now."""

    id: Name
    labels: Annotated[dict[Short, Short], Field(max_length=64)]


class LabelledDevices(OperationResult):
    """The devices whose labels were changed."""

    devices: Annotated[list[Labelled], Field(max_length=500)]


class Grouped(OperationResult):
    """The devices that are in a group by now; "" is none."""

    devices: Annotated[list[Name], Field(max_length=500)]
    group: Annotated[str, Field(max_length=64)]


class AuditRow(OperationResult):
    """One line of the audit log."""

    number: Count
    at: Finite
    actor: Short
    act: Short
    subject: Short
    detail: Annotated[dict[str, Any], Field(max_length=64)]
    digest: Sha256


class AuditLog(Listing):
    """What was done, the latest first."""

    rows_key, id_key = "entries", "number"
    entries: Annotated[list[AuditRow], Field(max_length=1_000_000)]


class AuditVerified(OperationResult):
    """How many entries the audit log has, each chained to the one before."""

    entries: Count
