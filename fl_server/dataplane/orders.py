"""Orders on their way out: at once, or when the upload in parts of a large update was begun."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from broker.wire.messages import BundleRef, ModelRef, Order, PartsRef, UploadRef
from fl_server.dataplane.bundles import SiteBundles
from fl_server.dataplane.plane import DataPlane
from fl_server.dataplane.urls import URL_LIFETIME_S, SharedUrls
from fl_server.flows.commands import IssueOrder, ModelFile
from fl_server.flows.flow import Flow

# beside the values: the header, which names every chunk
_HEADER_ALLOWANCE = 2 << 20


class OrderSender:
    """Makes messages of orders and sends them. The owner's thread calls it and never waits.

    Args:
        time_left_s: of a run's order: what its device is told.
        publish: takes a device's id and its order.
    """

    def __init__(
        self,
        data: DataPlane,
        bundles: SiteBundles,
        time_left_s: Callable[[str, IssueOrder], float],
        publish: Callable[[str, Order], None],
        epoch: int,
    ) -> None:
        self._data = data
        self._bundles = bundles
        self._time_left_s = time_left_s
        self._publish = publish
        self.epoch = epoch
        self._urls = SharedUrls(data.store)

    def send(self, flow: Flow, order: IssueOrder, later: AbstractContextManager[None]) -> None:
        """Send an order, now or once there is an upload for the parts of its update.

        Args:
            later: handles the errors of what is done after this has returned.
        """
        key, size = order.upload_key, 0 if order.model is None else order.model.size_bytes
        if not key or not self._data.uploads.is_large(size):
            self._send(flow, order, None)
            return

        def begun(parts: PartsRef | None) -> None:
            with later:
                if flow.awaits(order):
                    self._send(flow, order, parts)
                else:
                    self._data.abandon_upload(key)

        self._data.begin_upload(key, size + _HEADER_ALLOWANCE, begun)

    def _send(self, flow: Flow, order: IssueOrder, parts: PartsRef | None) -> None:
        settings = order.settings
        message = Order(
            epoch=self.epoch,
            action=order.action,
            run_id=flow.run_id,
            round=order.round,
            attempt=order.attempt,
            task=settings.task,
            algorithm=settings.algorithm,
            algorithm_settings=dict(settings.algorithm_settings),
            training=dict(settings.training),
            seed=settings.seed,
            transforms=[dict(each) for each in settings.transforms],
            phase=order.phase,
            seq=order.seq,
            payload=order.payload,
            model=self._model(order.model),
            vectors=self._model(order.vectors),
            scalars=dict(order.scalars),
            evaluators=order.evaluators,
            singly=order.singly,
            width=order.width,
            upload=self._upload(order.upload_key, parts),
            bundle=self._bundle(order),
            time_left_s=self._time_left_s(flow.run_id, order),
        )
        self._publish(order.device_id, message)

    def _model(self, model: ModelFile | None) -> ModelRef | None:
        if model is None:
            return None
        return ModelRef(
            url=self._urls.of(model.key),
            key=model.key,
            sha256=model.sha256,
            size_bytes=model.size_bytes,
            patches=list(model.patches),
        )

    def _upload(self, key: str, parts: PartsRef | None) -> UploadRef | None:
        if not key:
            return None
        store = self._data.store
        return UploadRef(
            url=store.presign_put(key, URL_LIFETIME_S),
            key=key,
            headers=store.upload_headers,
            parts=parts,
        )

    def _bundle(self, order: IssueOrder) -> BundleRef | None:
        return None if order.bundle is None else self._bundles.reference(order.bundle)
