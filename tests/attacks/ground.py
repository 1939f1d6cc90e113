"""A whole site under attack: what an attacker with a device's credentials holds, and who watches.

Nobody here has a right that the product does not give: the eyes are those of the server, of the
operator and of the victims themselves, and the untrusted broker speaks by the server's own user.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import queue
import re
import signal
import socket
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, Self, TypeVar

import paho.mqtt.client as mqtt
import urllib3
from paho.mqtt.enums import CallbackAPIVersion

from broker.session.endpoint import Endpoint
from broker.session.publication import Delivery, Publication
from broker.session.session import MqttSession
from broker.session.signer import MessageSigner
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
from rengo.operator.runs import submit
from rengo.site.device_process import DeviceSpec, device_process
from rengo.site.site import Site
from runtime.processes.child import Child
from runtime.security.identity import Identity, read_identity
from runtime.security.signing import SecretKey
from storage.store.s3 import S3Store
from storage.updates.stream import WrittenUpdate
from storage.weights import Vector, Weights, read_safetensors
from tests.chaos.gated import reached
from tests.chaos.scripted_device import honest_bytes
from tests.chaos.test_scripted_peers import noise
from tests.contract.broker_places import cut
from tests.integration.broker_fixtures import Owner, eventually
from tests.messages import SAMPLES
from tests.support import hold_still
from tests.updates import info_of

M = TypeVar("M", bound=Message)
PATIENCE_S = 60.0
QUIET_S = 0.3
LEAVES = ("state", "info", "ack", "progress", "result", "request")
GATED_TASK = f"{Path(__file__).parents[1] / 'chaos' / 'gated.py'}:GatedDigits"


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


class Eyes:
    """Hears all that its endpoints may hear; nothing is taken away from anybody."""

    def __init__(self, *views: tuple[Identity, Sequence[str]]) -> None:
        self._owners: list[Owner] = []
        self._sessions: list[MqttSession] = []
        for identity, filters in views:
            owner = Owner()
            endpoint = replace(
                Endpoint.of(identity), client_id=f"eyes-{os.urandom(6).hex()}", persistent=False
            )
            owner.session = MqttSession(endpoint, filters, owner)
            self._owners.append(owner)
            self._sessions.append(owner.session)

    def __enter__(self) -> Self:
        for session in self._sessions:
            session.start()
        for session in self._sessions:
            session.wait_connected(10)
        return self

    def __exit__(self, *_: object) -> None:
        for session in self._sessions:
            session.stop()

    @property
    def deliveries(self) -> list[Delivery]:
        return [each for owner in self._owners for each in owner.deliveries]

    def on(self, topic: str) -> list[bytes]:
        """Return what came on a topic, clearings left out."""
        return [each.payload for each in self.deliveries if each.topic == topic and each.payload]

    @property
    def payloads(self) -> set[bytes]:
        return {each.payload for each in self.deliveries}

    def wait(self, payload: bytes) -> None:
        eventually(lambda: payload in self.payloads)


@dataclass
class Agent:
    """The real agent of a device, as a process of its own that nobody restarts but the test."""

    child: Child
    identity: Path
    folder: Path

    @property
    def log(self) -> str:
        return self.child.log.read_text("utf-8", "replace") if self.child.log.exists() else ""

    def refusals(self, topic: str, why: str) -> int:
        """Return how many messages on a topic the agent has refused for a reason."""
        return sum(
            f"refused a message on {topic}" in line and why in line for line in self.log.split("\n")
        )

    @property
    def stages(self) -> list[str]:
        """The stages of the jobs that it keeps on disk."""
        path = self.folder / "jobs.sqlite"
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as journal:
            return [stage for (stage,) in journal.execute("SELECT stage FROM jobs")]

    @property
    def training_processes(self) -> int:
        """How many training processes it has started."""
        return len(re.findall(r"training process \d+ is ready", self.log))


@dataclass
class Ground:
    """A running site and everything that a test asks of it."""

    kind: Kind
    site: Site
    gates: Path
    agents: dict[str, Agent] = field(default_factory=dict)

    # --- who there is -------------------------------------------------------------------------

    @property
    def topics(self) -> Topics:
        return Topics(self.site.record.domain)

    @property
    def server(self) -> Identity:
        return read_identity(self.site.folder.identity_path("server"))

    def device(self, name: str) -> Identity:
        """Return the identity of an admitted device, admitted now if it was not."""
        folder = self.site.folder
        known = folder.identity_path(name).exists()
        identity = folder.ensure_identity("device", name, self.site.at)
        if not known:
            self.site.admit([identity])
        return identity

    def intruder(self, name: str = "mallory", **options: Any) -> Intruder:
        return Intruder(self.kind, self.device(name), **options)

    @property
    def author(self) -> MessageSigner:
        """The server's own hand, for what a test has it say."""
        return MessageSigner("server", self.server.secret_key)

    @contextlib.contextmanager
    def untrusted_broker(self) -> Iterator[Inject]:
        """What an untrusted broker can do: bring any bytes to the topics of the server's user."""
        identity = self.server
        endpoint = replace(
            Endpoint.of(identity), client_id=f"broker-{os.urandom(6).hex()}", persistent=False
        )
        session = MqttSession(endpoint, (), lambda _: True)
        session.start()
        session.wait_connected(10)

        def inject(topic: str, payload: bytes, *, retain: bool = False) -> None:
            assert session.publish(Publication(topic, payload, retain=retain))
            assert session.flush(10)

        try:
            yield inject
        finally:
            session.stop()

    def eyes(self, *victims: str) -> Eyes:
        """Return the eyes of the server, the operator and the victims together."""
        topics, server = self.topics, self.server
        device = [topics.device("+", leaf) for leaf in LEAVES]
        views: list[tuple[Identity, Sequence[str]]] = [
            (
                server,
                [
                    *device,
                    topics.server_state,
                    topics.run("+", "state"),
                    topics.operator("+", "request"),
                    topics.enroll("+"),
                ],
            ),
            (
                self.site.operator,
                [topics.run("+", "events"), topics.operator("operator", "reply")],
            ),
        ]
        for name in victims:
            own = [topics.device(name, leaf) for leaf in ("task", "receipt")]
            views.append((self.device(name), own))
        return Eyes(*views)

    # --- what the server knows ----------------------------------------------------------------

    def call(self, operation: str, arguments: dict[str, Any] | None = None) -> dict[str, Any]:
        with self.site.connect() as client:
            return client.call(operation, arguments, timeout_s=PATIENCE_S)

    @property
    def refused(self) -> Counter[str]:
        return Counter(self.call("server_info")["refused_messages"])

    @property
    def epoch(self) -> int:
        """Grows with each start of the server, whose counts begin anew with it."""
        return int(self.call("server_info")["epoch"])

    @contextlib.contextmanager
    def counting(self, **expected: int) -> Iterator[None]:
        """See that the server refuses exactly so many messages more, by reason.

        Refused connections are told some seconds later, so that they are left out.
        """
        # what an attack before this one has left to refuse is not this one's
        before, epoch, wanted = self.settle(), self.epoch, Counter(expected)

        def more() -> Counter[str]:
            found = self.refused - before
            del found["connection"]
            return found

        yield
        with contextlib.suppress(AssertionError):
            eventually(lambda: more() == wanted, 15)
        found = more()
        assert self.epoch == epoch, "the server was started again in between, and counts anew"
        assert found == wanted, f"refused {found} instead of {wanted}"

    def settle(self) -> Counter[str]:
        """Return what the server has refused, when it has refused what there was to refuse."""
        before = self.refused
        while True:
            pause(0.5)
            if (now := self.refused) == before:
                return now
            before = now

    def row(self, device_id: str) -> dict[str, Any]:
        """Return the server's row of a device."""
        with self.site.connect() as client:
            return next(row.document() for row in client.devices() if row.id == device_id)

    def audit(self, **wanted: str) -> list[dict[str, Any]]:
        """Return the entries that have these values, the latest first."""
        entries = self.call("audit_ls")["entries"]
        return [each for each in entries if wanted.items() <= each.items()]

    @contextlib.contextmanager
    def unharmed(self) -> Iterator[None]:
        """See that the broker, the store and the server are the same processes and answer."""
        before = self.pids
        yield
        assert self.call("server_info")["domain"] == self.site.record.domain
        assert self.pids == before

    @property
    def pids(self) -> tuple[int, int, int]:
        site = self.site
        return site.broker.pid, site.store.pid, site.children["server"].pid

    @contextlib.contextmanager
    def stopped(self, *pids: int) -> Iterator[None]:
        """Hold processes still within the block."""
        for pid in pids:
            hold_still(pid)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    @property
    def store(self) -> S3Store:
        return S3Store(self.site.store.settings)

    # --- agents and runs ----------------------------------------------------------------------

    def agent(self, name: str, task: str = GATED_TASK) -> Agent:
        """Return the only agent that runs, started now if it does not."""
        self.device(name)
        for other, running in self.agents.items():
            if other != name and running.child.running:
                running.child.stop()
                self.wait_status(other, "offline")
        if name not in self.agents:
            root = self.site.folder.root
            identity, folder = self.site.folder.identity_path(name), root / "devices" / name
            child = device_process(
                DeviceSpec(name, engine="numpy"), identity, folder, task, root / f"{name}.log"
            )
            self.agents[name] = Agent(child, identity, folder)
        agent = self.agents[name]
        if not agent.child.running:
            agent.child.start()
            self.wait_status(name, "ready")
        return agent

    def wait_status(self, name: str, *status: str) -> None:
        eventually(lambda: self.row(name)["status"] in status, PATIENCE_S)

    def submit(self, task: str, size: int, *, rounds: int = 1, quorum: int = 0) -> str:
        values = {
            "rounds": rounds,
            "cohort": {
                "size": size,
                "quorum": quorum or size,
                "deadline_s": 120.0,
                "gather_s": 60.0,
            },
            "evaluation": {"on": "none"},
        }
        with self.site.connect() as client:
            return submit(client, task, values)

    def final(self, run_id: str) -> Vector:
        """Return the model of a run that has ended."""
        self.finish(run_id)
        url = self.call("models_url", {"name": run_id})["url"]
        with urllib3.PoolManager(retries=False) as pool:
            return weights_of(pool.request("GET", url).data).vector

    def finish(self, run_id: str, status: str = "completed") -> dict[str, Any]:
        """Return the run's report when it has ended so."""

        def ended() -> bool:
            return self.call("runs_show", {"run_id": run_id})["status"] not in {
                *("waiting", "running", "paused"),
            }

        eventually(ended, PATIENCE_S)
        report = self.call("runs_show", {"run_id": run_id})
        assert report["status"] == status, report["reason"]
        return report

    def hold(self, name: str) -> None:
        """Let a device wait, once it has trained, for :meth:`release`."""
        (self.gates / name).touch()

    def wait_held(self, name: str) -> None:
        eventually(reached(self.gates / name).exists, PATIENCE_S)

    def release(self, name: str) -> None:
        (self.gates / name).unlink()
        reached(self.gates / name).unlink(missing_ok=True)

    def close(self) -> None:
        for agent in self.agents.values():
            agent.child.stop()


def secrets_of(path: Path) -> dict[str, Any]:
    """Return an identity file as it stands."""
    document: dict[str, Any] = json.loads(path.read_text())
    return document
