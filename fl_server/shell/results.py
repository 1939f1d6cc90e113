"""What a device's result is to the flows, and its receipt where no flow is there to decide."""

from __future__ import annotations

from broker.wire.messages import Receipt, Result
from fl_server.flows.events import DeviceAnswered, ReportedUpdate


def answer_of(device_id: str, message: Result) -> DeviceAnswered:
    """Return a result as flows are told of it."""
    update = message.update
    return DeviceAnswered(
        device_id,
        message.action,
        message.round,
        message.attempt,
        message.num_examples,
        message.metrics,
        message.usage.model_dump(),
        None
        if update is None
        else ReportedUpdate(update.key, update.size_bytes, update.header_sha256),
        message.payload,
        message.phase,
        message.seq,
        message.population,
    )


def receipt_without_flow(message: Result, *, is_known: bool) -> Receipt:
    """Return the receipt of a result whose run is not here, or whose facts are not kept."""
    return Receipt(
        action=message.action,
        run_id=message.run_id,
        round=message.round,
        attempt=message.attempt,
        phase=message.phase,
        seq=message.seq,
        status="late" if is_known else "unknown",
        reason="the run has ended" if is_known else "no such run here",
    )
