"""The broker's disk full and freed again: it is started again where it stores nothing any more."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest

from broker.brokers.mosquitto import MosquittoBroker
from broker.brokers.nats import EmbeddedBroker
from broker.wire.access import BrokerUser, Grants
from rengo.site.supervisor import Supervisor
from tests.disks import FullDisk, small_disk

USER = BrokerUser("probe", "passwordpw", Grants(("probe/#",), ("probe/#",)))
BODY = b"x" * 20_000
_LONG_S = 60.0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of 32 MB."""
    with small_disk(tmp_path / "disk", 32) as mounted:
        if not mounted:
            pytest.skip("this user may mount no disk")
        yield tmp_path / "disk"


Broker = EmbeddedBroker | MosquittoBroker


@contextmanager
def client(broker: Broker, name: str, *, lasting: bool) -> Iterator[mqtt.Client]:
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


def is_acknowledged(broker: Broker, timeout_s: float, *, retain: bool = False) -> bool:
    """Whether the broker takes a message of QoS 1 that a lasting session waits for."""
    with (
        suppress(OSError, AssertionError, RuntimeError),
        client(broker, "publisher", lasting=False) as found,
    ):
        sent = found.publish("probe/a", BODY, qos=1, retain=retain)
        sent.wait_for_publish(timeout_s)
        return sent.is_published()
    return False


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    found = Supervisor(probe_every_s=0.2)
    found.start()
    yield found
    found.stop()


def subscribed_for_good(broker: Broker) -> None:
    with client(broker, "lasting", lasting=True) as found:
        subscribed = threading.Event()
        found.on_subscribe = lambda *_: subscribed.set()
        found.subscribe("probe/a", qos=1)
        assert subscribed.wait(_LONG_S)


def wait_acknowledged(broker: Broker, *, retain: bool) -> None:
    deadline = time.monotonic() + _LONG_S
    while not is_acknowledged(broker, 3.0, retain=retain):
        assert time.monotonic() < deadline, "it did not come back"


@pytest.mark.parametrize("retain", [False, True], ids=["queued", "retained"])
@pytest.mark.parametrize("kind", [EmbeddedBroker, MosquittoBroker], ids=["nats", "mosquitto"])
def test_a_broker_whose_disk_was_full_stores_again_by_itself(
    disk: Path,
    kind: type[Broker],
    retain: bool,
    supervisor: Supervisor,
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = kind(disk / "broker")
    supervisor.add("broker", broker, lambda: broker.start([USER]), broker.fault, broker.data_dir)
    if not retain:
        subscribed_for_good(broker)
    assert is_acknowledged(broker, _LONG_S, retain=retain)
    with FullDisk(disk):
        # mosquitto takes messages into its memory and writes them when it may
        assert is_acknowledged(broker, 3.0, retain=retain) == (kind is MosquittoBroker)
        deadline = time.monotonic() + _LONG_S
        while "is full (" not in caplog.text:
            assert time.monotonic() < deadline, "nobody says that the disk is full"
    wait_acknowledged(broker, retain=retain)
    assert supervisor.restarts() == {"broker": 1 if kind is EmbeddedBroker else 0}
    (told,) = [each for each in caplog.messages if "is full" in each]
    assert told.startswith(f"the disk of {broker.data_dir} is full (")
    assert told.endswith(
        " KiB free): it holds the data of broker, which goes on when there is room"
    )
    assert broker.access.lasting_sessions() == ([] if retain else ["lasting"])
