"""What a scripted peer says of an update that answers an order."""

from __future__ import annotations

from broker.wire.messages import Order
from storage.updates.info import UpdateInfo
from storage.weights import Layout


def info_of(order: Order, device_id: str, layout: Layout, num_examples: int) -> UpdateInfo:
    """Return the honest description of a device's update."""
    return UpdateInfo(
        run_id=order.run_id,
        round=order.round,
        attempt=order.attempt,
        device_id=device_id,
        base_sha256=order.model.sha256,
        layout_hash=layout.hash,
        kind="delta",
        num_examples=num_examples,
    )
