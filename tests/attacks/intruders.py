"""Attackers with the credentials of a device, and what they send: false, damaged or honest."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import queue
import socket
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Self, TypeVar

import paho.mqtt.client as mqtt
import urllib3
from paho.mqtt.enums import CallbackAPIVersion

from broker.wire.messages import (
    KINDS,
    DeviceState,
    Message,
    Order,
    Result,
    UpdateRef,
    Usage,
    decode,
    encode,
)
from broker.wire.topics import Topics, parse
from runtime.security.identity import Identity
from runtime.security.signing import SecretKey
from storage.updates.stream import WrittenUpdate
from storage.weights import Vector, Weights, read_safetensors
from tests.chaos.scripted_device import honest_bytes
from tests.chaos.test_scripted_peers import noise
from tests.contract.broker_places import cut
from tests.integration.broker_fixtures import eventually
from tests.messages import SAMPLES
from tests.updates import info_of

M = TypeVar("M", bound=Message)
PATIENCE_S = 60.0
QUIET_S = 0.3
LEAVES = ("state", "info", "ack", "progress", "result", "request")


@dataclass(frozen=True)
class Kind:
    """A broker and a store; each of both is attacked once."""

    broker: Literal["nats", "mosquitto"]
    store: Literal["juicefs", "seaweedfs"]


KINDS_OF_SITE = [Kind("nats", "juicefs"), Kind("mosquitto", "seaweedfs")]


def sample(topic: str) -> Message:
    """Return a message that belongs on a topic."""
    address = parse(topic)
    place = (address.area, address.leaf)
    return SAMPLES[next(kind for kind, each in KINDS.items() if each.channel == place)]


def pause(seconds: float = QUIET_S) -> None:
    """Give what must not happen the time to happen."""
    with contextlib.suppress(queue.Empty):
        queue.Queue[None]().get(timeout=seconds)


class Inject(Protocol):
    """Brings bytes to a topic."""

    def __call__(self, topic: str, payload: bytes, *, retain: bool = False) -> None: ...


class Forger:
    """Writes what no honest peer writes, correctly signed by one key."""

    def __init__(self, name: str, key: SecretKey) -> None:
        self.name = name
        self.key = key
        self._numbers = itertools.count(1)

    def write(self, topic: str, message: Message, sender: str = "") -> bytes:
        """Return a message for a topic, by whomever it says."""
        return encode(
            message,
            parse(topic),
            self.key,
            sender=sender or self.name,
            boot_id=f"forged-by-{self.name}",
            seq=next(self._numbers),
            sent_ms=int(time.time() * 1000),
        )

    def sign(self, topic: str, data: bytes) -> bytes:
        """Return any bytes in the place of an envelope."""
        return self.key.sign(topic.encode() + b"\0" + data) + data


class Intruder(Forger):
    """An MQTT client without our guards, with valid credentials; ended without a word."""

    def __init__(
        self,
        kind: Kind,
        identity: Identity,
        *,
        client_id: str = "",
        clean: bool = True,
        will: tuple[str, bytes] | None = None,
        modern: bool | None = None,
    ) -> None:
        super().__init__(identity.id, identity.secret_key)
        self.heard: list[tuple[str, bytes]] = []
        self.session_present = False
        modern = kind.broker == "mosquitto" if modern is None else modern
        self.modern = modern
        self._answered: set[int | None] = set()
        self._identity = identity
        self._clean = clean
        self.client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id or f"intruder-{os.urandom(4).hex()}",
            clean_session=None if modern else clean,
            protocol=mqtt.MQTTv5 if modern else mqtt.MQTTv311,
            reconnect_on_failure=False,
        )
        self.client.username_pw_set(identity.id, identity.password.get_secret_value())
        self.client.max_queued_messages_set(0)
        self.client.on_message = self._on_message
        self.client.on_connect = self._on_connect
        self.client.on_subscribe = lambda _client, _data, mid, _codes, _props: self._answered.add(
            mid
        )
        if will is not None:
            self.client.will_set(will[0], will[1], qos=1, retain=True)

    def __enter__(self) -> Self:
        options = {"clean_start": self._clean} if self.modern else {}
        self.client.connect(self._identity.host, self._identity.port, **options)
        self.client.loop_start()
        eventually(lambda: self.client.is_connected() or not self.alive)
        return self

    def __exit__(self, *_: object) -> None:
        cut(self.client)
        self.client.loop_stop()

    def _on_message(self, _client: Any, _data: Any, message: mqtt.MQTTMessage) -> None:
        self.heard.append((message.topic, message.payload))

    def _on_connect(self, _client: Any, _data: Any, flags: Any, *_: Any) -> None:
        self.session_present = flags.session_present

    @property
    def alive(self) -> bool:
        """Whether its network thread still has a connection."""
        thread = self.client._thread
        return thread is not None and thread.is_alive()

    @property
    def connected(self) -> bool:
        # paho's own flag outlives a socket that broke while it wrote
        return self.client.is_connected() and self.client.socket() is not None

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        """Publish, and wait until the broker said that it has it."""
        self.client.publish(topic, payload, qos, retain).wait_for_publish(10)

    def subscribe(self, *filters: str) -> None:
        """Subscribe to each by itself and wait for the answers, whatever they are."""
        # a clean session of QoS 1 makes NATS lose messages of others when it ends
        qos = 0 if self._clean else 1
        for each in filters:
            mid = self.client.subscribe(each, qos)[1]
            eventually(lambda mid=mid: mid in self._answered or not self.connected)

    def packet(self, topic: str, payload: bytes, number: int = 7) -> bytes:
        """Return a PUBLISH of QoS 1 as it goes over the line."""
        properties = b"\0" if self.modern else b""
        rest = len(topic).to_bytes(2) + topic.encode() + number.to_bytes(2) + properties + payload
        length, size = bytearray(), len(rest)
        while size:
            length.append(size % 128 | (128 if size > 127 else 0))
            size //= 128
        return b"\x32" + bytes(length) + rest

    def send_raw(self, data: bytes) -> None:
        """Write to the socket past paho, which keeps to what the broker said it takes."""
        sock = self.client.socket()
        assert isinstance(sock, socket.socket)
        with sock.dup() as line, contextlib.suppress(ConnectionError):
            line.settimeout(10)
            line.sendall(data)


class Trainer(Intruder):
    """A device of a run that does its work as the test says; ready as soon as it is entered."""

    def __init__(self, kind: Kind, identity: Identity) -> None:
        super().__init__(kind, identity)
        self.topics = Topics(identity.domain)
        self._server_key = identity.believed
        self._http = urllib3.PoolManager(retries=False)

    def __enter__(self) -> Self:
        super().__enter__()
        self.subscribe(*(self.topics.device(self.name, leaf) for leaf in ("task", "receipt")))
        self.be("ready")
        return self

    def __exit__(self, *error: object) -> None:
        if self.connected:
            self.be("offline")
        super().__exit__(*error)
        self._http.clear()

    def say(self, leaf: str, message: Message, *, retain: bool = False) -> bytes:
        """Publish on a topic of its own; return the bytes."""
        topic = self.topics.device(self.name, leaf)
        payload = self.write(topic, message)
        self.publish(topic, payload, retain=retain)
        return payload

    def be(self, status: str) -> None:
        state = {"status": status, "boot_id": "scripted", "tasks": ["digits"]}
        self.say("state", DeviceState.model_validate(state), retain=True)

    def _find(self, kind: type[M], run_id: str) -> M | None:
        for topic, payload in self.heard:
            message = decode(payload, parse(topic), self._server_key)[1]
            if isinstance(message, kind) and message.run_id == run_id:  # type: ignore[attr-defined]
                return message
        return None

    def hear(self, kind: type[M], run_id: str) -> M:
        """Return the first message of a kind that is about a run."""
        eventually(lambda: self._find(kind, run_id) is not None, PATIENCE_S)
        found = self._find(kind, run_id)
        assert found is not None
        return found

    def forget(self) -> None:
        """Hear from here on."""
        self.heard.clear()

    def request(self, method: str, url: str, body: bytes | None = None, **headers: str) -> int:
        """Return the store's status."""
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return self._http.request(method, url, body=body, headers=names).status

    def model(self, order: Order) -> Weights:
        data = self._http.request("GET", order.model.url).data
        assert hashlib.sha256(data).hexdigest() == order.model.sha256
        return weights_of(data)

    def update(self, order: Order, seed: int, examples: int) -> Update:
        """Return an honest update of random values, not yet sent."""
        weights = self.model(order)
        vector = noise(weights, seed)
        info = info_of(order, self.name, weights.layout, examples)
        data, written = honest_bytes(info, vector)
        return Update(vector, examples, data, written)

    def upload(self, order: Order, data: bytes) -> None:
        assert order.upload is not None
        assert self.request("PUT", order.upload.url, data) == 200

    def report(self, order: Order, update: Update) -> bytes:
        """Say that an update was uploaded; return the message."""
        assert order.upload is not None
        return self.say(
            "result",
            Result(
                action="train",
                run_id=order.run_id,
                round=order.round,
                attempt=order.attempt,
                num_examples=update.examples,
                metrics={},
                update=UpdateRef(
                    key=order.upload.key,
                    size_bytes=update.written.size_bytes,
                    header_sha256=update.written.header_sha256,
                ),
                usage=Usage(),
            ),
        )


@dataclass(frozen=True)
class Update:
    """An update with its file."""

    vector: Vector
    examples: int
    data: bytes
    written: WrittenUpdate


def weights_of(data: bytes) -> Weights:
    """Return what a model's file holds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        path.write_bytes(data)
        return read_safetensors(path)
