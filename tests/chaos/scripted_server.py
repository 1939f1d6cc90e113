"""A server that a test drives: real broker and store, one device, orders again on every ready."""

from __future__ import annotations

import hashlib
import io
import queue
from dataclasses import dataclass, field
from typing import Any

from broker.session.endpoint import Endpoint
from broker.session.publication import Delivery, Publication
from broker.session.session import MqttSession
from broker.session.signer import MessageSigner
from broker.wire.messages import (
    Decline,
    DeviceState,
    Message,
    ModelRef,
    Order,
    Receipt,
    Request,
    Result,
    UpdateRef,
    UploadRef,
    decode,
)
from broker.wire.topics import Topics, parse
from runtime.security.signing import SecretKey
from storage.store.s3 import S3Store
from storage.updates.header import read_header
from storage.updates.stream import verified_blocks
from storage.weights import Weights, write_safetensors

_EXPIRES_S = 600
_MAX_BYTES = 1 << 26


@dataclass(frozen=True)
class Counted:
    """An update that counts: what it is called, what it holds and what was said of it."""

    header_sha256: str
    vector_sha256: str
    metrics: dict[str, float]


@dataclass
class Ledger:
    """What the server has of each round, and how often another update came for one."""

    counted: dict[int, Counted] = field(default_factory=dict)
    others: list[int] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)


class ScriptedServer:
    """Orders rounds of one device, counts each round's update once and receipts all that come."""

    def __init__(
        self, endpoint: Endpoint, store: S3Store, device_id: str, domain: str, key: SecretKey
    ) -> None:
        self.ledger = Ledger()
        self.round = 0
        self._store = store
        self._device_id = device_id
        self._topics = Topics(domain)
        self._key = key
        self._author = MessageSigner("server", key)
        self._order: dict[str, Any] | None = None
        self._inbox: queue.SimpleQueue[object] = queue.SimpleQueue()
        leaves = ("state", "result", "ack", "request")
        self._session = MqttSession(
            endpoint, [self._topics.device(device_id, leaf) for leaf in leaves], self._offer
        )
        self._session.start()
        self._session.wait_connected(30)

    def stop(self) -> None:
        self._session.stop()

    def _offer(self, event: object) -> bool:
        self._inbox.put(event)
        return True

    def open(self, number: int, weights: Weights, fields: dict[str, Any]) -> None:
        """Order a round, now and whenever the device says that it is ready, until it is counted."""
        out = io.BytesIO()
        write_safetensors(weights, out)
        data, key = out.getvalue(), f"models/{number}"
        self._store.put(key, data)
        self.round = number
        self._order = {
            **fields,
            "round": number,
            "sha256": hashlib.sha256(data).hexdigest(),
            "size_bytes": len(data),
            "key": key,
        }
        self._send_order()

    def listen(self, patience_s: float) -> None:
        """Answer what the device says within the time."""
        try:
            event = self._inbox.get(timeout=patience_s)
        except queue.Empty:
            return
        if not isinstance(event, Delivery):
            return
        self._session.ack(event)
        if event.payload:
            self._take(decode(event.payload, parse(event.topic), self._key.public)[1])

    def _take(self, message: Message) -> None:
        match message:
            case DeviceState(status="ready") | Request():
                self._send_order()
            case Result():
                self._count(message)
            case Decline():
                self.ledger.refusals.append(str(message))

    def _send_order(self) -> None:
        if self._order is None or self.round in self.ledger.counted:
            return
        fields, key = dict(self._order), f"updates/{self.round}"
        model = ModelRef(
            url=self._store.presign_get(fields["key"], _EXPIRES_S),
            **{name: fields.pop(name) for name in ("key", "sha256", "size_bytes")},
        )
        upload = UploadRef(
            url=self._store.presign_put(key, _EXPIRES_S),
            key=key,
            headers=self._store.upload_headers,
        )
        order = Order(
            epoch=1,
            action="train",
            attempt=1,
            algorithm="fedavg",
            algorithm_settings={},
            training={},
            seed=7,
            model=model,
            upload=upload,
            time_left_s=600.0,
            **fields,
        )
        self._say("task", order)

    def _count(self, result: Result) -> None:
        assert result.update is not None
        known = self.ledger.counted.get(result.round)
        if known is None:
            known = self.ledger.counted[result.round] = Counted(
                result.update.header_sha256, self._vector_sha256(result.update), result.metrics
            )
        same = known.header_sha256 == result.update.header_sha256
        if not same:
            self.ledger.others.append(result.round)
        receipt = Receipt(
            action="train",
            run_id=result.run_id,
            round=result.round,
            attempt=result.attempt,
            status="accepted" if same else "refused",
        )
        self._say("receipt", receipt)

    def _vector_sha256(self, update: UpdateRef) -> str:
        digest = hashlib.sha256()
        with self._store.open(update.key) as stream:
            header = read_header(stream, header_sha256=update.header_sha256, max_bytes=_MAX_BYTES)
            for block in verified_blocks(stream, header, header.parameters):
                digest.update(block.tobytes())
        return digest.hexdigest()

    def _say(self, leaf: str, message: Message) -> None:
        topic = self._topics.device(self._device_id, leaf)
        publication: Publication = self._author.sign(topic, message)
        self._session.publish(publication)
