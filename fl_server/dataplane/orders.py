"""Orders on their way out: at once, or when the upload in parts of a large update was begun."""

from __future__ import annotations

from collections.abc import Callable

from broker.wire.messages import Order, PartsRef
from fl_server.dataplane.bundles import SiteBundles
from fl_server.dataplane.plane import DataPlane
from fl_server.rounds.events import SendOrder
from fl_server.runs.active import ActiveRun

# beside the values: the header, which names every chunk
_HEADER_ALLOWANCE = 2 << 20


class Ordering:
    """Makes orders and sends them; called on the owner's thread, which never waits for the store.

    Args:
        publish: takes a device's id and its order.
    """

    def __init__(
        self,
        data: DataPlane,
        bundles: SiteBundles,
        publish: Callable[[str, Order], None],
        epoch: int,
    ) -> None:
        self._data = data
        self._bundles = bundles
        self._publish = publish
        self._epoch = epoch

    def send(self, run: ActiveRun, command: SendOrder) -> None:
        """Send an order, now or once there is a place for the parts of its update."""
        size = run.machine.ledger.model.size_bytes
        if command.action != "train" or not self._data.uploads.is_large(size):
            self._send(run, command, None)
            return
        key = run.keys.update(command.round, command.attempt, command.device_id)

        def placed(parts: PartsRef | None) -> None:
            if run.awaits(command):
                self._send(run, command, parts)
            else:
                self._data.abandon_upload(key)

        self._data.place_upload(key, size + _HEADER_ALLOWANCE, placed)

    def _send(self, run: ActiveRun, command: SendOrder, parts: PartsRef | None) -> None:
        order = run.order(command, self._data.store, self._epoch, parts)
        bundle = run.record.definition.bundle
        if bundle is not None:
            order = order.model_copy(update={"bundle": self._bundles.reference(bundle)})
        self._publish(command.device_id, order)
