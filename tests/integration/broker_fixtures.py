"""A real embedded broker, and an owner's queue that a test can watch."""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from broker.brokers.nats import EmbeddedBroker
from broker.session.endpoint import Endpoint
from broker.session.inbox import Connected, Disconnected, SessionEvent, SessionFault
from broker.session.outbox import Outbox
from broker.session.publication import Delivery, Publication
from broker.session.session import MqttSession
from broker.wire.access import BrokerUser, Grants, Role, grants
from runtime.security.identity import Identity
from tests.messages import KEY

DOMAIN = "home"
BASE = f"rengo/v1/{DOMAIN}"
TASK_A = f"{BASE}/dev/dev-a/task"


def user(name: str, role: Role, password: str | None = None) -> BrokerUser:
    return BrokerUser(name, password or f"secret-of-{name}", grants(role, DOMAIN, name))


ANYONE = BrokerUser("anyone", "secret-of-anyone", Grants((f"{BASE}/#",), (f"{BASE}/#",)))
USERS = [
    user("dev-a", Role.DEVICE),
    user("dev-b", Role.DEVICE),
    user("server", Role.SERVER),
    user("op-a", Role.OPERATOR),
    user("nonce-a", Role.CLAIMANT),
    ANYONE,
]


class Owner:
    """Takes events as a real owner does: a bounded queue that refuses when it is full.

    With ``limit`` None nothing is refused and every delivery is acknowledged as it comes.
    """

    def __init__(self, limit: int | None = None, *, acks: bool = True) -> None:
        self.events: list[SessionEvent] = []
        self.limit = limit
        self.acks = acks
        self.raising: Exception | None = None
        self.session: MqttSession | None = None
        self._changed = threading.Condition()

    def __call__(self, event: SessionEvent) -> bool:
        with self._changed:
            if self.raising is not None and isinstance(event, Delivery):
                raise self.raising
            if self.limit is not None and len(self.events) >= self.limit:
                return False
            self.events.append(event)
            self._changed.notify_all()
        if self.acks and self.session is not None and isinstance(event, Delivery):
            self.session.ack(event)
        return True

    def wait(self, holds: Callable[[], bool], timeout_s: float = 30.0) -> None:
        with self._changed:
            assert self._changed.wait_for(holds, timeout_s), f"not within {timeout_s} s: {self}"

    def take_all(self) -> list[SessionEvent]:
        with self._changed:
            taken, self.events = self.events, []
        return taken

    @property
    def deliveries(self) -> list[Delivery]:
        return [each for each in self.events if isinstance(each, Delivery)]

    @property
    def payloads(self) -> list[bytes]:
        return [each.payload for each in self.deliveries]

    @property
    def connections(self) -> list[Connected]:
        return [each for each in self.events if isinstance(each, Connected)]

    @property
    def losses(self) -> list[Disconnected]:
        return [each for each in self.events if isinstance(each, Disconnected)]

    @property
    def faults(self) -> list[Exception]:
        return [each.error for each in self.events if isinstance(each, SessionFault)]

    def __repr__(self) -> str:
        return f"Owner({[str(each)[:120] for each in self.events[-10:]]}, {len(self.events)})"


class Site:
    """One broker and the sessions of a test, all ended with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.broker = EmbeddedBroker(folder / "broker", ack_wait_s=1.0)
        self._sessions: list[MqttSession] = []
        self._outboxes: list[Outbox] = []

    def start(self) -> None:
        """Start the broker, and be its first subscriber, to whom NATS may give no document."""
        self.broker.start(USERS)
        first = self.endpoint(client_id="first", persistent=False)
        self.session(Owner(), f"{BASE}/#", endpoint=first).stop()

    def restart_after_kill(self) -> None:
        self.broker.kill()
        self.start()

    def endpoint(
        self, name: str = "anyone", client_id: str = "", *, persistent: bool = True
    ) -> Endpoint:
        host, port = self.broker.endpoint
        return Endpoint(
            host, port, name, f"secret-of-{name}", client_id or f"{name}-1", persistent=persistent
        )

    def identity(self, name: str) -> Identity:
        """Return a device's identity here; its key, and the server's, are the tests' own."""
        host, port = self.broker.endpoint
        return Identity(
            role="device",
            domain=DOMAIN,
            id=name,
            client_id=f"{name}-1",
            host=host,
            port=port,
            password=SecretStr(f"secret-of-{name}"),
            key=SecretStr(KEY.text),
            server_key=KEY.public.text,
        )

    def outbox(self, name: str = "outbox") -> Outbox:
        outbox = Outbox(self.folder / f"{name}.db")
        self._outboxes.append(outbox)
        return outbox

    def session(
        self,
        owner: Owner,
        *subscriptions: str,
        endpoint: Endpoint | None = None,
        will: Publication | None = None,
        outbox: Outbox | None = None,
        resend_s: float = 10.0,
        wait: bool = True,
    ) -> MqttSession:
        session = MqttSession(
            endpoint or self.endpoint(),
            subscriptions,
            owner,
            will=will,
            outbox=outbox,
            resend_s=resend_s,
        )
        owner.session = session
        self._sessions.append(session)
        session.start()
        if wait:
            session.wait_connected(10)
        return session

    def publisher(self) -> MqttSession:
        return self.session(
            Owner(), endpoint=self.endpoint(client_id="publisher", persistent=False)
        )

    def close(self) -> None:
        for session in self._sessions:
            session.stop()
        for outbox in self._outboxes:
            outbox.close()
        self.broker.stop()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    place = Site(tmp_path)
    place.start()
    try:
        yield place
    finally:
        place.close()


def connect_packet(level: int, name: str, password: str | None) -> bytes:
    """Return MQTT's first packet, of 3.1 (3), 3.1.1 (4) or 5; without a name nobody is named."""

    def text(value: str) -> bytes:
        return len(value).to_bytes(2) + value.encode()

    flags = 2 | (0x80 if name else 0) | (0x40 if password is not None else 0)
    body = text("MQIsdp" if level == 3 else "MQTT") + bytes([level, flags, 0, 60])
    body += (b"\0" if level == 5 else b"") + text("anybody")
    body += (text(name) if name else b"") + (b"" if password is None else text(password))
    return bytes([0x10, len(body)]) + body


def quiet_for(seconds: float, owner: Owner) -> None:
    """Return after ``seconds`` in which nothing more was delivered to ``owner``."""
    before = len(owner.deliveries)
    with contextlib.suppress(queue.Empty):
        queue.Queue[None]().get(timeout=seconds)
    assert len(owner.deliveries) == before, f"{owner}"


def settled(seconds: float, owner: Owner) -> set[bytes]:
    """Return what ``owner`` was delivered, once nothing more came to it for ``seconds``."""
    before = -1
    while before != len(owner.deliveries):
        before = len(owner.deliveries)
        with contextlib.suppress(queue.Empty):
            queue.Queue[None]().get(timeout=seconds)
    return set(owner.payloads)


def eventually(holds: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.01)


@contextlib.contextmanager
def process(**order: Any) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.publisher_process", json.dumps(order)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()


def answer(child: subprocess.Popen[str]) -> dict[str, Any]:
    assert child.stdout is not None
    said: dict[str, Any] = json.loads(child.stdout.readline())
    return said
