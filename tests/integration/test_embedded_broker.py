"""What the embedded broker enforces, keeps and leaves behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import paho.mqtt.client as mqtt
import psutil
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from broker.brokers.access_control import RefusedConnection
from broker.brokers.control_socket import ask_sessions
from broker.brokers.nats import EmbeddedBroker, NatsAccess, nats_server_binary, to_nats
from broker.session.endpoint import Endpoint
from broker.session.publication import Publication
from broker.session.session import MqttSession
from broker.wire.access import BrokerUser
from broker.wire.limits import MAX_MESSAGE_BYTES
from runtime.errors import AuthenticationFailed, ConfigError, TransportError
from tests.integration.broker_fixtures import (
    BASE,
    USERS,
    Owner,
    Site,
    answer,
    connect_packet,
    eventually,
    process,
    quiet_for,
    site,
)

__all__ = ["site"]

OWN = f"{BASE}/dev/dev-a"
FOREIGN = f"{BASE}/dev/dev-b"


@contextlib.contextmanager
def raw(site: Site, name: str, client_id: str) -> Iterator[mqtt.Client]:
    """A client without our own guards, as an attacker has it."""
    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=client_id)
    client.username_pw_set(name, f"secret-of-{name}")
    host, port = site.broker.endpoint
    client.connect(host, port)
    client.loop_start()
    try:
        eventually(client.is_connected)
        yield client
    finally:
        client.disconnect()
        client.loop_stop()


@pytest.mark.parametrize(
    "topic",
    [
        f"{FOREIGN}/state",
        f"{FOREIGN}/result",
        f"{OWN}/task",
        f"{OWN}/receipt",
        f"{BASE}/server/state",
        f"{BASE}/run/r1/state",
        f"{BASE}/op/op-a/request",
        "rengo/v1/elsewhere/dev/dev-a/state",
        "$MQTT/msgs/" + f"{FOREIGN}/task",
        "$MQTT/rmsgs/" + f"{BASE}/server/state",
        "$JS/API/STREAM/DELETE/$MQTT_msgs",
    ],
)
def test_a_device_cannot_publish_as_another(site: Site, topic: str) -> None:
    reader = Owner()
    site.session(reader, f"{BASE}/#")
    with raw(site, "dev-a", "attacker") as attacker:
        for retain in (False, True):
            attacker.publish(topic, b"forged", qos=1, retain=retain).wait_for_publish(5)
        attacker.publish(f"{OWN}/state", b"honest", qos=1).wait_for_publish(5)
    reader.wait(lambda: b"honest" in reader.payloads)
    late = Owner()
    site.session(late, f"{BASE}/#", endpoint=site.endpoint(client_id="late"))
    quiet_for(0.2, late)
    assert b"forged" not in reader.payloads + late.payloads


@pytest.mark.parametrize(
    "topic_filter",
    [
        "#",
        "+/#",
        f"{BASE}/#",
        f"{BASE}/dev/+/task",
        f"{FOREIGN}/task",
        f"{FOREIGN}/state",
        f"{BASE}/op/op-a/reply",
        "$MQTT/#",
        "$JS/#",
        "$SYS/#",
    ],
)
def test_a_device_cannot_read_what_is_not_its_own(site: Site, topic_filter: str) -> None:
    spy = Owner()
    site.session(spy, topic_filter, f"{OWN}/task", endpoint=site.endpoint("dev-a"))
    spy.wait(lambda: bool(spy.faults))
    writer = site.publisher()
    for topic in (f"{FOREIGN}/task", f"{FOREIGN}/state", f"{BASE}/op/op-a/reply"):
        writer.publish(Publication(topic, b"secret", retain=True))
    writer.publish(Publication(f"{OWN}/task", b"order"))
    spy.wait(lambda: b"order" in spy.payloads)
    quiet_for(0.2, spy)
    assert spy.payloads == [b"order"]


@pytest.mark.parametrize(("will", "arrives"), [(f"{FOREIGN}/state", False), (f"{OWN}/state", True)])
def test_a_forged_will_is_not_published(site: Site, will: str, arrives: bool) -> None:
    reader = Owner()
    site.session(reader, f"{BASE}/dev/+/state")
    with process(
        user="dev-a",
        outbox=str(site.folder / "forger.db"),
        client_id="forger",
        port=site.broker.endpoint.port,
        connect=True,
        will=will,
    ) as child:
        assert answer(child) == {"flushed": True}
        child.send_signal(signal.SIGKILL)
        if arrives:
            reader.wait(lambda: reader.payloads == [b"gone"])
        else:
            quiet_for(1.0, reader)


def test_each_role_can_do_what_it_must(site: Site) -> None:
    by_name = {each.name: each for each in USERS}
    owners = {}
    for name in ("dev-a", "server", "op-a", "nonce-a"):
        owners[name] = Owner()
        site.session(owners[name], *by_name[name].grants.subscribe, endpoint=site.endpoint(name))
    for name, reader, topic in [
        ("dev-a", "server", f"{OWN}/result"),
        ("server", "dev-a", f"{OWN}/task"),
        ("server", "dev-a", f"{BASE}/run/r1/state"),
        ("op-a", "server", f"{BASE}/op/op-a/request"),
        ("server", "op-a", f"{BASE}/op/op-a/reply"),
        ("server", "op-a", f"{BASE}/run/r1/events"),
        ("nonce-a", "server", f"{BASE}/enroll/nonce-a"),
        ("server", "nonce-a", f"{BASE}/enroll/nonce-a/result"),
    ]:
        session = owners[name].session
        assert session is not None
        assert session.publish(Publication(topic, b"hello"))
        there = owners[reader]
        there.wait(lambda there=there, topic=topic: topic in [d.topic for d in there.deliveries])
    assert not any(owner.faults for owner in owners.values())


def test_the_client_port_of_nats_admits_nobody(site: Site) -> None:
    ports = {
        each.laddr.port
        for each in psutil.Process(site.broker.pid).net_connections("tcp")
        if each.status == psutil.CONN_LISTEN
    }
    addresses = {
        each.laddr.ip
        for each in psutil.Process(site.broker.pid).net_connections("tcp")
        if each.status == psutil.CONN_LISTEN
    }
    assert addresses == {"127.0.0.1"}
    for port in ports - {site.broker.endpoint.port}:
        with socket.create_connection(("127.0.0.1", port), 5) as door:
            door.sendall(
                b'CONNECT {"user":"server","pass":"secret-of-server","verbose":true}\r\nPING\r\n'
            )
            door.settimeout(5)
            said = b""
            with contextlib.suppress(ConnectionError):
                while chunk := door.recv(4096):
                    said += chunk
        assert b"Authorization Violation" in said


def test_a_reload_admits_new_users_and_cuts_off_removed_ones(site: Site) -> None:
    kept, removed = Owner(), Owner()
    site.session(kept, endpoint=site.endpoint("dev-b"))
    site.session(removed, endpoint=site.endpoint("dev-a"))
    newcomer = BrokerUser("dev-c", "secret-of-dev-c", USERS[0].grants)
    site.broker.reload([*(each for each in USERS if each.name != "dev-a"), newcomer])
    removed.wait(lambda: bool(removed.losses))
    removed.wait(lambda: any(isinstance(each, AuthenticationFailed) for each in removed.faults))
    joined = Owner()
    site.session(joined, endpoint=site.endpoint("dev-c"))
    assert joined.connections
    assert not kept.losses


def test_a_reload_with_bad_users_changes_nothing(site: Site) -> None:
    owner = Owner()
    session = site.session(owner, endpoint=site.endpoint("dev-a"))
    with pytest.raises(ConfigError, match="twice: dev-a"):
        site.broker.reload([*USERS, USERS[0]])
    with pytest.raises(ConfigError, match="at least one user"):
        site.broker.reload([])
    assert session.connected


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        broker = EmbeddedBroker(tmp_path, port)
        with pytest.raises(ConfigError, match=f"port {port} for the MQTT broker"):
            broker.start(USERS)
    broker.start(USERS)
    broker.stop()


def test_a_folder_in_use_is_named(site: Site) -> None:
    with pytest.raises(ConfigError, match="another MQTT broker uses"):
        EmbeddedBroker(site.broker.data_dir).start(USERS)
    assert site.broker.running


def test_an_orderly_restart_keeps_the_state(site: Site) -> None:
    state = f"{BASE}/server/state"
    writer = site.publisher()
    # nats-server may forget a subscription that is younger than a few milliseconds at its end
    before = Owner()
    leaving = site.session(before, f"{OWN}/task")
    writer.publish(Publication(f"{OWN}/task", b"while there"))
    before.wait(lambda: before.payloads == [b"while there"])
    leaving.stop()
    writer.publish(Publication(state, b"document", retain=True))
    writer.publish(Publication(f"{OWN}/task", b"queued"))
    assert writer.flush(10)
    port = site.broker.endpoint.port
    site.broker.stop()
    site.broker = EmbeddedBroker(site.broker.data_dir, port)
    site.start()
    owner = Owner()
    site.session(owner, f"{OWN}/task", state)
    owner.wait(lambda: set(owner.payloads) == {b"document", b"queued"})


def test_passwords_are_in_no_file(site: Site) -> None:
    assert stat.S_IMODE(site.broker.data_dir.stat().st_mode) == 0o700
    assert "secret" not in " ".join(psutil.Process(site.broker.pid).cmdline())
    site.broker.stop()  # so that no file goes while they are read
    holding = [
        path
        for path in site.broker.data_dir.rglob("*")
        if path.is_file() and b"secret-of-dev-a" in path.read_bytes()
    ]
    assert holding == []
    users = site.broker.data_dir / "users.conf"
    assert stat.S_IMODE(users.stat().st_mode) == 0o600


def test_users_of_before_may_still_connect_and_are_hashed(tmp_path: Path) -> None:
    place = Site(tmp_path)
    folder = place.broker.data_dir
    folder.mkdir()
    users = folder / "users.conf"
    users.write_text(to_nats(USERS, "a-lister-of-before", hash_of=lambda password: password))
    NatsAccess(folder).apply(USERS)
    assert "a-lister-of-before" in users.read_text(), "a supervisor of before asks by it"
    users.write_text(to_nats(USERS, "a-lister-of-before", hash_of=lambda password: password))
    try:
        place.broker.start(None)
        text = users.read_text()
        assert "a-lister-of-before" not in text
        assert "secret-of" not in text
        owner = Owner()
        place.session(owner, f"{OWN}/task", endpoint=place.endpoint("dev-a"))
        NatsAccess(folder).apply(USERS)  # as a server that has just been started, with new hashes
        assert users.read_text() != text
        assert ask_sessions(folder) == ["dev-a-1"]
        place.publisher().publish(Publication(f"{OWN}/task", b"order"))
        owner.wait(lambda: owner.payloads == [b"order"])
        assert owner.losses == []
    finally:
        place.close()


def test_a_broker_lets_in_who_has_waited(site: Site) -> None:
    """A password takes it a millisecond: of many who come at once the last one waits."""
    first = connect_packet(4, "dev-a", "secret-of-dev-a")
    with socket.create_connection(site.broker.endpoint, 30) as connection:
        connection.sendall(first[:1])
        time.sleep(3.0)  # NATS itself would wait for 2 s
        connection.sendall(first[1:])
        assert connection.recv(4) == b"\x20\x02\x00\x00"


def test_the_broker_itself_refuses_what_is_far_over_the_limit(site: Site) -> None:
    owner = Owner()
    site.session(owner, f"{OWN}/state")
    with raw(site, "dev-a", "flooder") as flooder:
        flooder.publish(f"{OWN}/state", bytes(2 * MAX_MESSAGE_BYTES), qos=1)
        quiet_for(0.5, owner)


def test_a_stopped_broker_leaves_no_process(tmp_path: Path) -> None:
    broker = EmbeddedBroker(tmp_path)
    broker.start(USERS)
    pid = broker.pid
    broker.stop()
    assert not psutil.pid_exists(pid)
    assert not broker.running
    with pytest.raises(TransportError):
        broker.reload(USERS)


PARENT = """
import sys, threading
from pathlib import Path
from broker.brokers.nats import EmbeddedBroker
from tests.integration.broker_fixtures import USERS
broker = EmbeddedBroker(Path(sys.argv[1]))
broker.start(USERS)
print(broker.pid, broker.endpoint.port, flush=True)
threading.Event().wait()
"""


def test_a_killed_parent_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pid, port = map(int, parent.stdout.readline().split())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    broker = EmbeddedBroker(tmp_path, port)
    broker.start(USERS)
    assert broker.pid != pid
    broker.stop()
    eventually(lambda: not psutil.pid_exists(pid))


def test_an_orphan_on_the_folder_is_ended(tmp_path: Path) -> None:
    broker = EmbeddedBroker(tmp_path)
    broker.start(USERS)
    broker.stop()
    orphan = subprocess.Popen(
        [str(nats_server_binary()), "-c", str(tmp_path / "broker.conf")],
        cwd=tmp_path,  # its configuration names its files from there
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    pid_file = tmp_path / "broker.pid"
    eventually(lambda: pid_file.exists() and pid_file.read_text().strip() == str(orphan.pid))
    began = time.monotonic()
    broker.start(USERS)
    assert time.monotonic() - began < 10
    assert orphan.wait(1) is not None
    broker.stop()


def test_a_stale_pid_file_of_a_stranger_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "broker.pid").write_text(str(os.getpid()))
    broker = EmbeddedBroker(tmp_path)
    broker.start(USERS)
    broker.stop()


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "jetstream").write_text("a file where a folder must be")
    broker = EmbeddedBroker(tmp_path)
    with pytest.raises(TransportError, match="MQTT broker ended at start"):
        broker.start(USERS)
    (tmp_path / "jetstream").unlink()
    broker.start(USERS)
    broker.stop()


def test_whom_the_broker_refused_is_told_once(site: Site) -> None:
    access = site.broker.access
    assert access.refused_connections() == []
    for user in ("stranger", 'a" - forged', "dev-a"):
        endpoint = Endpoint(*site.broker.endpoint, user, "not-the-password", "somebody")
        session = MqttSession(endpoint, [], lambda _: True)
        session.start()
        with pytest.raises(AuthenticationFailed):
            session.wait_connected(10)
        session.stop()
    found: list[RefusedConnection] = []

    def told() -> bool:
        found.extend(access.refused_connections())
        return len(found) == 6  # a session asks once more before it gives up

    eventually(told)
    assert [each.user for each in found] == [*2 * ["stranger"], *2 * [""], *2 * ["dev-a"]]
    assert {each.address for each in found} == {"127.0.0.1"}
    assert access.refused_connections() == []
