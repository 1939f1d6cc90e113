"""What a scripted peer says of an update that answers an order."""

from __future__ import annotations

import numpy as np

from algorithms.base import STATISTICS
from broker.wire.messages import Order
from fl_client.models.local_round import LocalUpdate
from storage.updates.info import UpdateInfo
from storage.weights import Layout, Vector


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


def change_of(update: LocalUpdate) -> Vector:
    """Return the change of all floats of the model, that of running statistics among them."""
    assert update.vector is not None
    return np.asarray(update.vector + update.vectors.get(STATISTICS, np.float32(0)), np.float32)
