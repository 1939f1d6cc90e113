"""The receipt of what a device reported."""

from __future__ import annotations

from fl_server.flows.commands import ReceiptStatus, SendReceipt
from fl_server.flows.events import Action
from fl_server.rounds.events import (
    EvaluationReceived,
    ResultReceived,
    UpdateDelivered,
    UpdateRejected,
    UpdateVerified,
)


def receipt_of(
    event: ResultReceived | UpdateDelivered | UpdateVerified | UpdateRejected | EvaluationReceived,
    status: ReceiptStatus,
    reason: str = "",
) -> SendReceipt:
    """Return the receipt of a result, of its update's check, or of metrics."""
    action: Action = "evaluate" if isinstance(event, EvaluationReceived) else "train"
    return SendReceipt(event.device_id, action, event.round, event.attempt, status, reason)
