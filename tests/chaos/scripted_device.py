"""A device that a test drives: a real identity, the real broker and store, no honesty."""

from __future__ import annotations

import hashlib
import io
import queue
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import urllib3

from broker.session.endpoint import Endpoint
from broker.session.publication import Delivery
from broker.session.session import MqttSession
from broker.session.signer import MessageSigner
from broker.wire.messages import (
    DeviceState,
    Message,
    Order,
    Receipt,
    Result,
    UpdateRef,
    Usage,
    decode,
)
from broker.wire.topics import Topics, parse
from runtime.security.identity import Identity
from storage.updates.info import Block, UpdateInfo, encode_header
from storage.updates.stream import WrittenUpdate, write_update
from storage.weights import Vector, Weights, read_safetensors
from tests.updates import info_of

M = TypeVar("M", bound=Message)
_PATIENCE_S = 60.0


class ScriptedDevice:
    """Connects and says ``ready``; everything else is the test's."""

    def __init__(self, identity: Identity, task: str) -> None:
        self.id = identity.id
        self._topics = Topics(identity.domain)
        self._task = task
        self._author = MessageSigner(identity.id, identity.secret_key)
        self._server_key = identity.believed
        self._inbox: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._seen: list[Message] = []
        self._http = urllib3.PoolManager()
        self._session = MqttSession(
            Endpoint.of(identity),
            [self._topics.device(self.id, "task"), self._topics.device(self.id, "receipt")],
            self._offer,
        )
        self._session.start()
        self._session.wait_connected(_PATIENCE_S)
        self.be("ready")

    def stop(self) -> None:
        self.be("offline")
        self._session.stop()

    def be(self, status: str) -> None:
        """Publish the device's presence."""
        state = {"status": status, "boot_id": "scripted", "tasks": [self._task]}
        self.say("state", DeviceState.model_validate(state), retain=True)

    def _offer(self, event: object) -> bool:
        self._inbox.put(event)
        return True

    # --- messages -------------------------------------------------------------------------------

    def say(self, leaf: str, message: Message, *, retain: bool = False) -> None:
        topic = self._topics.device(self.id, leaf)
        assert self._session.publish(self._author.sign(topic, message, retain=retain))
        assert self._session.flush(_PATIENCE_S)

    def hear(self, kind: type[M], such: Callable[[M], bool]) -> M:
        """Return the next such message, taking it out of what was heard."""
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            for message in self._seen:
                if isinstance(message, kind) and such(message):
                    self._seen.remove(message)
                    return message
            event = self._inbox.get(timeout=max(0.01, deadline - time.monotonic()))
            if isinstance(event, Delivery):
                self._session.ack(event)
                self._seen.append(decode(event.payload, parse(event.topic), self._server_key)[1])

    def order(self, run_id: str, round_number: int, attempt: int = 1) -> Order:
        wanted = (run_id, round_number, attempt)
        return self.hear(Order, lambda order: (order.run_id, order.round, order.attempt) == wanted)

    def receipt(self, order: Order) -> Receipt:
        wanted = (order.run_id, order.round, order.attempt)
        return self.hear(
            Receipt, lambda receipt: (receipt.run_id, receipt.round, receipt.attempt) == wanted
        )

    def report(
        self, order: Order, written: WrittenUpdate, examples: int, key: str | None = None
    ) -> Result:
        """Send a result, as often as it is called."""
        assert order.upload is not None
        result = Result(
            action="train",
            run_id=order.run_id,
            round=order.round,
            attempt=order.attempt,
            num_examples=examples,
            metrics={},
            update=UpdateRef(
                key=key or order.upload.key,
                size_bytes=written.size_bytes,
                header_sha256=written.header_sha256,
            ),
            usage=Usage(),
        )
        self.say("result", result)
        return result

    # --- bytes ----------------------------------------------------------------------------------

    def model(self, order: Order) -> Weights:
        body = self._http.request("GET", order.model.url).data
        assert hashlib.sha256(body).hexdigest() == order.model.sha256
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model"
            path.write_bytes(body)
            return read_safetensors(path)

    def upload(self, order: Order, data: bytes) -> None:
        assert order.upload is not None
        assert self._http.request("PUT", order.upload.url, body=data).status == 200

    def info(self, order: Order, weights: Weights, examples: int) -> UpdateInfo:
        return info_of(order, self.id, weights.layout, examples)

    def send(self, order: Order, vector: Vector, examples: int) -> WrittenUpdate:
        """Do what an honest device does: write, upload, report."""
        data, written = honest_bytes(self.info(order, self.model(order), examples), vector)
        self.upload(order, data)
        self.report(order, written, examples)
        return written


def honest_bytes(info: UpdateInfo, vector: Vector) -> tuple[bytes, WrittenUpdate]:
    out = io.BytesIO()
    written = write_update(out, info, vector)
    return out.getvalue(), written


def crafted_bytes(info: UpdateInfo, vector: Vector) -> tuple[bytes, WrittenUpdate]:
    """Return an update whose every hash is right, whatever its values are."""
    data = np.ascontiguousarray(vector, "<f4").tobytes()
    chunk = Block(len(data), vector.size, hashlib.sha256(data).hexdigest())
    start = encode_header(info, "float32", [chunk])
    return start + data, WrittenUpdate(hashlib.sha256(start).hexdigest(), len(start) + len(data))
