"""Every kind of broker that Rengo runs, each with the MQTT versions that it speaks."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from broker.brokers.listener import ListenerTls
from broker.brokers.managed_users import ManagedUsers
from broker.brokers.mosquitto import MosquittoAccess, MosquittoBroker
from broker.brokers.nats import EmbeddedBroker, NatsAccess
from broker.session.endpoint import Endpoint
from runtime.security.tls import Tls
from tests.integration.broker_fixtures import Site, eventually
from tests.support import require

Server = Literal["nats", "mosquitto"]


@dataclass(frozen=True)
class Kind:
    """A broker and the version of MQTT that the clients speak to it."""

    server: Server
    protocol: Literal["3.1.1", "5"]

    @property
    def name(self) -> str:
        return f"{self.server}-{self.protocol}"


KINDS = [Kind("nats", "3.1.1"), Kind("mosquitto", "3.1.1"), Kind("mosquitto", "5")]


class Place(Site):
    """One broker of a kind, and the sessions of a test, all ended with it."""

    broker: EmbeddedBroker | MosquittoBroker  # type: ignore[assignment]

    def __init__(self, kind: Kind, folder: Path, tls: ListenerTls | None = None) -> None:
        super().__init__(folder)
        self.kind = kind
        self.tls: Tls | None = None
        self.renew(tls=tls)

    def renew(
        self, port: int | None = None, *, host: str = "127.0.0.1", tls: ListenerTls | None = None
    ) -> None:
        """Take another object for the same folder, as a new process has it."""
        folder = self.folder / "broker"
        if self.kind.server == "nats":
            self.broker = EmbeddedBroker(folder, port, host=host, tls=tls, ack_wait_s=1.0)
        else:
            self.broker = MosquittoBroker(folder, port, host=host, tls=tls)

    def access(self) -> ManagedUsers:
        """What a process that is not the broker's parent uses."""
        kinds = {"nats": NatsAccess, "mosquitto": MosquittoAccess}
        return kinds[self.kind.server](self.folder / "broker")

    def endpoint(
        self, name: str = "anyone", client_id: str = "", *, persistent: bool = True
    ) -> Endpoint:
        plain = super().endpoint(name, client_id, persistent=persistent)
        return replace(plain, protocol=self.kind.protocol, tls=self.tls)

    def wait_written(self, *payloads: bytes) -> None:
        """Return when an acknowledged message is on the broker's disk.

        NATS writes before it acknowledges; mosquitto's state follows within milliseconds.
        """
        if self.kind.server == "mosquitto":
            state = self.broker.data_dir / "state.db"

            def written() -> bool:
                held = state.read_bytes() if state.exists() else b""
                return all(payload in held for payload in payloads)

            eventually(written)

    @contextlib.contextmanager
    def raw(
        self, name: str, client_id: str, *, will: str | None = None, clean: bool = True
    ) -> Iterator[mqtt.Client]:
        """A foreign client without our guards, as an attacker has it; ended without a word."""
        modern = self.kind.protocol == "5"
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            clean_session=None if modern else clean,
            protocol=mqtt.MQTTv5 if modern else mqtt.MQTTv311,
            reconnect_on_failure=False,
        )
        client.username_pw_set(name, f"secret-of-{name}")
        if will is not None:
            client.will_set(will, b"gone", qos=1)
        client.connect(*self.broker.endpoint, **({"clean_start": clean} if modern else {}))
        client.loop_start()
        try:
            eventually(client.is_connected)
            yield client
        finally:
            cut(client)
            client.loop_stop()


def cut(client: mqtt.Client) -> None:
    """End the connection as a killed process does."""
    sock = client.socket()
    if isinstance(sock, socket.socket):
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


def require_server(server: Server) -> None:
    """Skip, or fail in CI, where the server is not installed."""
    if server == "mosquitto":
        require("mosquitto")


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> Kind:
    chosen: Kind = request.param
    require_server(chosen.server)
    return chosen


@pytest.fixture
def place(kind: Kind, tmp_path: Path) -> Iterator[Place]:
    made = Place(kind, tmp_path)
    made.start()
    try:
        yield made
    finally:
        made.close()
