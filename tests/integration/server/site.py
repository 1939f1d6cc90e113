"""One server in a thread on a real broker and a real store, and whoever talks to it."""

from __future__ import annotations

import hashlib
import io
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import urllib3
from pydantic import SecretStr

from broker.brokers.access_control import AccessControl, ManualAccess
from broker.brokers.nats import EmbeddedBroker
from broker.session.endpoint import Endpoint
from broker.session.publication import Delivery, Publication
from broker.session.session import MqttSession
from broker.wire.access import Grants
from broker.wire.messages import Message, Result, UpdateRef, Usage, decode
from broker.wire.topics import Topics, parse
from fl_server.members.membership import SiteInfo
from fl_server.persistence.journal import Journal
from fl_server.server import Server, ServerSettings
from rengo.operator.client import OperatorClient
from runtime.security.identity import Identity
from runtime.security.signing import SecretKey
from storage.store.embedded import EmbeddedStore
from storage.store.s3 import S3Store
from storage.weights import Weights, write_safetensors
from tests.integration.broker_fixtures import Owner
from tests.messages import content, signed

DOMAIN = "home"
BASE = f"rengo/v1/{DOMAIN}"
TOPICS = Topics(DOMAIN)
ANYONE = Grants((f"{BASE}/#",), (f"{BASE}/#",))
HTTP = urllib3.PoolManager(retries=False)


@dataclass
class Place:
    """A broker and a store that the tests of the server share."""

    broker: EmbeddedBroker
    store: EmbeddedStore
    server: Identity
    operator: Identity

    def endpoint(self, name: str, client_id: str = "") -> Endpoint:
        host, port = self.broker.endpoint
        password = f"secret-of-{name}"
        return Endpoint(host, port, name, password, client_id or f"{name}-1", persistent=False)


def key_of(name: str) -> SecretKey:
    """Return the key that whoever has this name signs with in these tests."""
    return SecretKey(hashlib.sha256(name.encode()).hexdigest())


SERVER = key_of("server").public


def known(identity: Identity) -> Identity:
    """Return an identity with the password that the broker of these tests knows."""
    return identity.model_copy(update={"password": SecretStr(f"secret-of-{identity.id}")})


def said(topic: str, what: Message | bytes, sender: str = "d-1", key: str = "") -> bytes:
    """Return what ``sender`` says on a topic, signed by him or by the owner of ``key``."""
    data = what if isinstance(what, bytes) else content(what, sender)
    return signed(data, parse(topic), key_of(key or sender))


@dataclass
class Site:
    """One server in a thread of its own, an operator, and a peer that may do everything."""

    place: Place
    folder: Path
    server: Server = field(init=False)
    thread: threading.Thread = field(init=False)
    fell: list[BaseException] = field(default_factory=list)
    owner: Owner = field(default_factory=Owner)
    sessions: list[MqttSession] = field(default_factory=list)
    access: AccessControl = field(default_factory=ManualAccess)
    more_operators: list[Identity] = field(default_factory=list)

    @property
    def journal_url(self) -> str:
        return f"sqlite:///{self.folder / 'journal.sqlite'}"

    def start(self) -> None:
        project = self.folder.name.replace("_", "-").lower()
        self.server = Server(
            ServerSettings(self.folder, SiteInfo("mqtt://127.0.0.1:1"), project=project),
            self.place.server,
            [self.place.operator, *self.more_operators],
            S3Store(self.place.store.settings),
            Journal(self.journal_url),
            self.access,
        )
        self.server.start(10)
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.server.run_forever()
        except BaseException as error:  # noqa: BLE001 (the test looks at it)
            self.fell.append(error)

    def stop(self) -> None:
        self.server.stop()
        self.thread.join(20)
        assert not self.thread.is_alive()

    def restart(self) -> None:
        self.stop()
        self.start()

    def peer(self, name: str = "anyone", *filters: str) -> tuple[MqttSession, Owner]:
        owner = Owner()
        session = MqttSession(
            self.place.endpoint(name, f"{name}-{len(self.sessions)}"), filters, owner
        )
        owner.session = session
        self.sessions.append(session)
        session.start()
        session.wait_connected(10)
        return session, owner

    def admit(self, *names: str) -> None:
        """Make these devices members, with the keys that they have in these tests."""
        devices = [
            {
                "id": name,
                "public_key": key_of(name).public.text,
                "client_id": f"{name}-1",
                "password": f"secret-of-{name}",
            }
            for name in names
        ]
        self.call("devices_admit", devices=devices)

    def statuses(self) -> dict[str, str]:
        """Return what the server holds of each device."""
        return {row["id"]: row["status"] for row in self.call("devices_ls")["devices"]}

    def call(self, operation: str, **arguments: Any) -> dict[str, Any]:
        with OperatorClient(self.place.operator) as client:
            return client.call(operation, arguments, timeout_s=10)

    def refused(self) -> dict[str, int]:
        found: dict[str, int] = self.call("server_info")["refused_messages"]
        return found

    def prepare(self, data: bytes, **changes: Any) -> dict[str, Any]:
        arguments = {
            "definition": {"task": "digits", "rounds": 2, "cohort": {"size": 1}},
            "size_bytes": len(data),
        }
        return self.call("runs_prepare", **{**arguments, **changes})

    def submit(self, data: bytes | None = None, **changes: Any) -> str:
        data = model() if data is None else data
        prepared = self.prepare(data, **changes)
        put(prepared["url"], data)
        return self.submit_prepared(prepared, data)

    def submit_prepared(self, prepared: dict[str, Any], data: bytes) -> str:
        """Say that ``data`` is there as version 0, and return the run's id."""
        sha256 = hashlib.sha256(data).hexdigest()
        told = self.call("runs_submit", run_id=prepared["run_id"], sha256=sha256)
        run_id: str = told["run_id"]
        return run_id

    def close(self) -> None:
        for session in self.sessions:
            session.stop()
        self.stop()
        self.forget_retained()

    def forget_retained(self) -> None:
        """Clear what the test left retained on the broker that others use too."""
        session, _ = self.peer()
        devices = {*self.server.presence.devices, "d-1", "d-2", "d-9"}
        topics = [
            TOPICS.server_state,
            *(TOPICS.run(run, "state") for run in self.server.runner.flows),
        ]
        topics += [
            TOPICS.device(name, leaf)
            for name in devices
            for leaf in ("state", "info", "health", "data")
        ]
        for topic in topics:
            session.publish(Publication(topic, b"", retain=True))
        assert session.flush(10)
        session.stop()


def model(seed: int = 0) -> bytes:
    source = np.random.default_rng(seed)
    out = io.BytesIO()
    arrays = {"0.weight": source.normal(size=(4, 3)).astype(np.float32)}
    write_safetensors(Weights.from_arrays(arrays), out)
    return out.getvalue()


def put(url: str, data: bytes) -> None:
    assert HTTP.request("PUT", url, body=data).status == 200


def message_of(delivery: Delivery) -> Message:
    return decode(delivery.payload, parse(delivery.topic), SERVER)[1]


def received(owner: Owner, kind: type[Message]) -> list[Any]:
    messages = [message_of(each) for each in owner.deliveries if each.payload]
    return [each for each in messages if isinstance(each, kind)]


def result(run_id: str, **changes: Any) -> Result:
    values: dict[str, Any] = {
        "action": "train",
        "run_id": run_id,
        "round": 1,
        "attempt": 1,
        "num_examples": 5,
        "metrics": {},
        "update": UpdateRef(key="x", size_bytes=1, header_sha256="0" * 64),
        "usage": Usage(),
    }
    return Result(**{**values, **changes})
