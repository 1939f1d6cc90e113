"""A session that speaks MQTT 5, on mosquitto."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.session.endpoint import ClientIdInUse, Endpoint
from broker.session.publication import Publication
from broker.session.session import MqttSession
from runtime.processes.ports import free_port
from tests.integration.broker_fixtures import TASK_A, Owner, eventually


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[int]:
    found = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
    if found is None:
        pytest.skip("mosquitto is not installed; it is the only MQTT 5 broker of these tests")
    port = free_port()
    config = tmp_path / "mosquitto.conf"
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
    child = subprocess.Popen([found, "-c", str(config)], stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: accepts(port))
        yield port
    finally:
        child.terminate()
        child.wait()


def accepts(port: int) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    return False


def modern(port: int, client_id: str) -> Endpoint:
    return Endpoint("127.0.0.1", port, "anyone", "secret", client_id, protocol="5")


@contextlib.contextmanager
def started(endpoint: Endpoint, owner: Owner, *subscriptions: str) -> Iterator[MqttSession]:
    session = MqttSession(endpoint, subscriptions, owner)
    owner.session = session
    session.start()
    try:
        session.wait_connected(10)
        yield session
    finally:
        session.stop()


def test_mqtt_5_keeps_the_offline_queue_over_a_process_restart(mosquitto: int) -> None:
    with started(modern(mosquitto, "reader"), Owner(), TASK_A):
        pass
    with started(modern(mosquitto, "writer"), Owner()) as writer:
        writer.publish(Publication(TASK_A, b"while away"))
        assert writer.flush(10)
    owner = Owner()
    with started(modern(mosquitto, "reader"), owner, TASK_A):
        owner.wait(lambda: owner.payloads == [b"while away"])
        assert owner.connections[0].session_present


def test_mqtt_5_names_a_twin_at_the_first_takeover(mosquitto: int) -> None:
    first, second = Owner(), Owner()
    with started(modern(mosquitto, "twin"), first), started(modern(mosquitto, "twin"), second):
        eventually(lambda: any(isinstance(each, ClientIdInUse) for each in first.faults))


def test_messages_refused_by_a_full_inbox_come_again_without_broker_redelivery(
    mosquitto: int,
) -> None:
    owner = Owner(limit=2)
    with (
        started(modern(mosquitto, "reader"), owner, TASK_A),
        started(modern(mosquitto, "writer"), Owner()) as writer,
    ):
        for number in range(5):
            writer.publish(Publication(TASK_A, str(number).encode()))
        assert writer.flush(10)
        owner.limit = None
        owner.wait(lambda: set(owner.payloads) == {b"0", b"1", b"2", b"3", b"4"}, 20)
