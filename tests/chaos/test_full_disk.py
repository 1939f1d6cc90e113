"""The broker's disk full and freed again: the supervisor brings its service back."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest

from broker.brokers.nats import EmbeddedBroker
from broker.wire.access import BrokerUser, Grants
from rengo.site.supervisor import Supervisor

USER = BrokerUser("probe", "passwordpw", Grants(("probe/#",), ("probe/#",)))
BODY = b"x" * 20_000
_LONG_S = 60.0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of 32 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    argv = ["mount", "-t", "tmpfs", "-o", "size=32m", "rengo-test", str(folder)]
    if subprocess.run(argv, capture_output=True, check=False).returncode:
        pytest.skip("this user may mount no disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def client(broker: EmbeddedBroker, name: str, *, lasting: bool) -> Iterator[mqtt.Client]:
    found = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=name, clean_session=not lasting)
    connected = threading.Event()
    found.on_connect = lambda *_: connected.set()
    found.username_pw_set(USER.name, USER.password)
    found.connect(*broker.endpoint)
    found.loop_start()
    try:
        assert connected.wait(_LONG_S)
        yield found
    finally:
        found.disconnect()
        found.loop_stop()


def is_acknowledged(broker: EmbeddedBroker, timeout_s: float) -> bool:
    """Whether the broker takes a message of QoS 1 that a lasting session waits for."""
    with (
        suppress(OSError, AssertionError, RuntimeError),
        client(broker, "publisher", lasting=False) as found,
    ):
        sent = found.publish("probe/a", BODY, qos=1)
        sent.wait_for_publish(timeout_s)
        return sent.is_published()
    return False


def fill(path: Path) -> None:
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(b"0" * 4096)


def test_a_broker_whose_disk_was_full_serves_again_by_itself(disk: Path) -> None:
    broker = EmbeddedBroker(disk / "broker")
    supervisor = Supervisor(probe_every_s=0.2)
    supervisor.start()
    try:
        supervisor.add("broker", broker, lambda: broker.start([USER]), broker.fault)
        with client(broker, "lasting", lasting=True) as found:
            subscribed = threading.Event()
            found.on_subscribe = lambda *_: subscribed.set()
            found.subscribe("probe/a", qos=1)
            assert subscribed.wait(_LONG_S)
        assert is_acknowledged(broker, _LONG_S)
        fill(disk / "fill")
        assert not is_acknowledged(broker, 3.0)
        (disk / "fill").unlink()
        deadline = time.monotonic() + _LONG_S
        while not is_acknowledged(broker, 3.0):
            assert time.monotonic() < deadline, "it did not come back"
        assert supervisor.restarts() == {"broker": 1}
    finally:
        supervisor.stop()
