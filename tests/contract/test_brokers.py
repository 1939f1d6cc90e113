"""Every broker that Rengo runs, with every MQTT version it speaks, held to the same guarantees."""

from __future__ import annotations

import contextlib
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import paho.mqtt.client as mqtt
import psutil
import pytest

from broker.brokers.listener import ListenerTls
from broker.session.endpoint import Endpoint
from broker.session.publication import Publication
from broker.session.session import MqttSession
from broker.wire.access import BrokerUser, Grants, Role
from broker.wire.limits import MAX_MESSAGE_BYTES
from rengo.site.certificates import Authority, Validity
from runtime.errors import AuthenticationFailed, ConfigError, TransportError, UntrustedPeer
from runtime.processes.ports import free_port
from runtime.security.tls import Tls
from tests.contract.broker_places import Kind, Place, cut, kind, place
from tests.integration.broker_fixtures import (
    ANYONE,
    BASE,
    USERS,
    Owner,
    eventually,
    quiet_for,
    settled,
    user,
)

__all__ = ["kind", "place"]

TASK_A = f"{BASE}/dev/dev-a/task"
STATE_A = f"{BASE}/dev/dev-a/state"
STATE_B = f"{BASE}/dev/dev-b/state"
RESULT_A = f"{BASE}/dev/dev-a/result"
SERVER_STATE = f"{BASE}/server/state"
WITHOUT_A = [each for each in USERS if each.name != "dev-a"]


def watcher(place: Place, topic_filter: str = f"{BASE}/#") -> Owner:
    """One who may read everything, with a queue that holds whatever was let through."""
    owner = Owner()
    place.session(owner, topic_filter, endpoint=place.endpoint(client_id="watcher"))
    return owner


def as_server(place: Place) -> MqttSession:
    return place.session(Owner(), endpoint=place.endpoint("server"))


# --- what is kept ---------------


def test_session_queue_and_documents_outlive_an_orderly_restart(place: Place) -> None:
    device = Owner()
    session = place.session(device, TASK_A, SERVER_STATE, endpoint=place.endpoint("dev-a"))
    server = as_server(place)
    server.publish(Publication(TASK_A, b"while there"))
    device.wait(lambda: device.payloads == [b"while there"])
    session.stop()
    server.publish(Publication(SERVER_STATE, b"document", retain=True))
    server.publish(Publication(TASK_A, b"queued"))
    assert server.flush(10)
    port = place.broker.endpoint.port
    place.broker.stop()
    place.renew(port)
    place.start()
    again = Owner()
    place.session(again, TASK_A, SERVER_STATE, endpoint=place.endpoint("dev-a"))
    again.wait(lambda: set(again.payloads) == {b"queued", b"document"})
    assert again.connections[0].session_present


def test_orders_for_a_device_that_is_away_outlive_a_kill(place: Place) -> None:
    place.session(Owner(), TASK_A, endpoint=place.endpoint("dev-a")).stop()
    server = as_server(place)
    expected = [b"order-%d-of-the-kill" % number for number in range(10)]
    for payload in expected:
        server.publish(Publication(TASK_A, payload))
    assert server.flush(10)
    place.wait_written(*expected)
    place.restart_after_kill()
    device = Owner()
    place.session(device, TASK_A, endpoint=place.endpoint("dev-a"))
    device.wait(lambda: len(device.deliveries) >= 10)
    assert device.connections[0].session_present
    assert device.payloads == expected


def test_retained_documents_outlive_a_kill(place: Place) -> None:
    server = as_server(place)
    for payload in (b"the first document", b"the second document"):
        server.publish(Publication(SERVER_STATE, payload, retain=True))
    assert server.flush(10)
    place.wait_written(b"the second document")
    place.restart_after_kill()
    reader = watcher(place)
    reader.wait(lambda: bool(reader.payloads))
    quiet_for(0.2, reader)
    assert reader.payloads == [b"the second document"]


def remove_a_document(place: Place) -> None:
    server = as_server(place)
    device = place.session(Owner(), endpoint=place.endpoint("dev-a"))
    device.publish(Publication(STATE_A, b"to be removed", retain=True))
    assert device.flush(10)
    device.stop()
    server.publish(Publication(STATE_A, b"", retain=True))
    server.publish(Publication(SERVER_STATE, b"document", retain=True))
    assert server.flush(10)
    server.stop()


def test_a_removed_document_stays_away_after_an_orderly_restart(place: Place) -> None:
    remove_a_document(place)
    place.broker.stop()
    place.start()
    reader = watcher(place)
    reader.wait(lambda: bool(reader.payloads))
    quiet_for(0.2, reader)
    assert reader.payloads == [b"document"]


def test_a_removed_document_may_come_back_after_a_kill_on_nats_alone(place: Place) -> None:
    remove_a_document(place)
    place.wait_written(b"document")
    place.restart_after_kill()
    reader = watcher(place)
    reader.wait(lambda: b"document" in reader.payloads)
    may = {b"document", b"to be removed"} if place.kind.server == "nats" else {b"document"}
    assert settled(0.2, reader) <= may
    # and whoever removes it again gets rid of it
    again = as_server(place)
    again.publish(Publication(STATE_A, b"", retain=True))
    assert again.flush(10)
    late = Owner()
    place.session(late, f"{BASE}/#", endpoint=place.endpoint(client_id="late"))
    late.wait(lambda: bool(late.payloads))
    quiet_for(0.2, late)
    assert late.payloads == [b"document"]


def test_a_document_stays_when_the_broker_moves_to_another_port(place: Place) -> None:
    device = place.session(Owner(), endpoint=place.endpoint("dev-a"))
    device.publish(Publication(STATE_A, b"ready", retain=True))
    assert device.flush(10)
    device.stop()
    place.broker.stop()
    place.renew()
    place.start()
    reader = watcher(place)
    reader.wait(lambda: reader.payloads == [b"ready"])


def test_what_a_kill_took_after_its_acknowledgement_is_sent_again_until_confirmed(
    place: Place,
) -> None:
    place.session(Owner(), TASK_A, endpoint=place.endpoint("dev-a")).stop()
    server = place.session(
        Owner(), endpoint=place.endpoint("server"), outbox=place.outbox(), resend_s=0.5
    )
    server.publish_durably("order", TASK_A, b"order", until="confirm")
    eventually(lambda: server.flush(0.01))
    place.restart_after_kill()  # at once: mosquitto may not have written it yet
    device = Owner()
    place.session(device, TASK_A, endpoint=place.endpoint("dev-a"))
    device.wait(lambda: b"order" in device.payloads)
    server.confirm("order")


def test_an_unacknowledged_message_comes_again_on_the_next_connection(place: Place) -> None:
    forgetful = Owner(acks=False)
    session = place.session(forgetful, TASK_A, endpoint=place.endpoint("dev-a"))
    as_server(place).publish(Publication(TASK_A, b"order"))
    forgetful.wait(lambda: forgetful.payloads == [b"order"])
    session.stop()
    device = Owner()
    again = place.session(device, TASK_A, endpoint=place.endpoint("dev-a"))
    device.wait(lambda: b"order" in device.payloads)
    again.flush(1)
    again.stop()
    late = Owner()
    place.session(late, TASK_A, endpoint=place.endpoint("dev-a"))
    quiet_for(0.3, late)


def test_a_thousand_messages_keep_their_order(place: Place) -> None:
    device = Owner()
    session = place.session(device, TASK_A, endpoint=place.endpoint("dev-a"))
    server = as_server(place)
    expected = [str(number).encode() for number in range(1000)]
    for payload in expected[:500]:
        assert server.publish(Publication(TASK_A, payload))
    device.wait(lambda: len(device.deliveries) >= 500)
    session.flush(1)
    session.stop()
    for payload in expected[500:]:
        assert server.publish(Publication(TASK_A, payload))
    assert server.flush(30)
    away = Owner()
    place.session(away, TASK_A, endpoint=place.endpoint("dev-a"))
    wanted = {*expected[500:]}
    away.wait(lambda: wanted <= {*away.payloads})
    settled(0.2, away)
    # an acknowledgement that the stop overtook is no loss: the message comes once more
    assert list(dict.fromkeys(device.payloads + away.payloads)) == expected


# --- wills, and who holds a client id ---------------


def test_a_will_tells_of_a_cut_connection_and_names_its_own(place: Place) -> None:
    reader = watcher(place, STATE_A)
    boots = iter(range(1, 100))
    place.session(
        device := Owner(),
        endpoint=place.endpoint("dev-a"),
        will=lambda: Publication(STATE_A, b"lost: boot %d" % next(boots)),  # type: ignore[arg-type]
    )
    for boot in (1, 2):
        session = device.session
        assert session is not None
        link = session._connection
        assert link is not None
        began = time.monotonic()
        cut(link._client)
        reader.wait(lambda boot=boot: reader.payloads[-1:] == [b"lost: boot %d" % boot], 5)
        assert time.monotonic() - began < 5
        device.wait(lambda boot=boot: len(device.connections) == boot + 1)
        eventually(lambda session=session: session.connected)
    session.stop()
    quiet_for(0.3, reader)
    assert reader.payloads == [b"lost: boot 1", b"lost: boot 2"]


def test_a_session_that_stops_leaves_no_will(place: Place) -> None:
    reader = watcher(place, STATE_A)
    session = place.session(
        Owner(), endpoint=place.endpoint("dev-a"), will=Publication(STATE_A, b"lost")
    )
    session.stop(Publication(STATE_A, b"farewell"))
    reader.wait(lambda: b"farewell" in reader.payloads)
    quiet_for(0.3, reader)
    assert reader.payloads == [b"farewell"]


def test_a_client_id_has_one_connection_and_the_newest_has_it(place: Place) -> None:
    with (
        place.raw("dev-a", "same", clean=False) as first,
        place.raw("dev-a", "same", clean=False) as second,
    ):
        eventually(lambda: not first.is_connected())
        heard: list[bytes] = []
        second.on_message = lambda _client, _data, message: heard.append(message.payload)
        subscribe(second, TASK_A)
        as_server(place).publish(Publication(TASK_A, b"order"))
        eventually(lambda: heard == [b"order"])


def test_another_user_who_knows_the_client_id_reads_nothing(place: Place) -> None:
    place.session(Owner(), TASK_A, endpoint=place.endpoint("dev-a", "known")).stop()
    server = as_server(place)
    server.publish(Publication(TASK_A, b"secret"))
    assert server.flush(10)
    thief = Owner()
    place.session(thief, f"{BASE}/dev/dev-b/task", endpoint=place.endpoint("dev-b", "known"))
    server.publish(Publication(TASK_A, b"another secret"))
    server.publish(Publication(f"{BASE}/dev/dev-b/task", b"own"))
    thief.wait(lambda: b"own" in thief.payloads)
    quiet_for(0.3, thief)
    assert thief.payloads == [b"own"]


# --- limits ---------------


def send_publish(place: Place, client: mqtt.Client, topic: str, payload: bytes) -> None:
    """Write a PUBLISH past paho, which with MQTT 5 keeps to what the broker said it takes."""
    properties = b"\0" if place.kind.protocol == "5" else b""
    rest = len(topic).to_bytes(2) + topic.encode() + b"\0\7" + properties + payload
    length, size = bytearray(), len(rest)
    while size:
        length.append(size % 128 | (128 if size > 127 else 0))
        size //= 128
    sock = client.socket()
    assert isinstance(sock, socket.socket)
    with sock.dup() as line, contextlib.suppress(ConnectionError):
        line.settimeout(5)
        line.sendall(b"\x32" + bytes(length) + rest)


def test_the_largest_payload_passes(place: Place) -> None:
    reader = watcher(place, RESULT_A)
    device = place.session(Owner(), endpoint=place.endpoint("dev-a"))
    assert device.publish(Publication(RESULT_A, bytes(MAX_MESSAGE_BYTES)))
    reader.wait(lambda: [len(each) for each in reader.payloads] == [MAX_MESSAGE_BYTES])


def test_a_payload_over_the_limit_harms_its_sender_alone(place: Place) -> None:
    reader = watcher(place, RESULT_A)
    with place.raw("dev-a", "flooder") as flooder, place.raw("dev-a", "modest") as modest:
        send_publish(place, flooder, RESULT_A, bytes(MAX_MESSAGE_BYTES + 64 * 1024))
        eventually(lambda: flooder.socket() is None)  # paho forgets to be disconnected
        modest.publish(RESULT_A, b"small", qos=1).wait_for_publish(5)
        reader.wait(lambda: bool(reader.payloads))
        assert modest.is_connected()
    assert reader.payloads == [b"small"]
    assert not reader.losses


# --- permissions ---------------


def subscribe(client: mqtt.Client, *filters: str) -> None:
    """Subscribe to each by itself, and wait for the answers, whatever they are."""
    answered: set[int | None] = set()
    client.on_subscribe = lambda _client, _data, mid, _codes, _props: answered.add(mid)
    for each in filters:
        mid = client.subscribe(each, 1)[1]
        eventually(lambda mid=mid: mid in answered, 5)


def test_a_device_publishes_for_itself_alone(place: Place) -> None:
    reader = watcher(place)
    with place.raw("dev-a", "attacker") as attacker:
        for topic in (
            STATE_B,
            f"{BASE}/dev/dev-b/result",
            f"{BASE}/dev/dev-b/ack",
            f"{BASE}/dev/dev-b/task",
            TASK_A,
            f"{BASE}/dev/dev-a/receipt",
            SERVER_STATE,
            f"{BASE}/run/r1/state",
            f"{BASE}/run/r1/events",
            f"{BASE}/op/op-a/request",
            f"{BASE}/op/op-a/reply",
            f"{BASE}/enroll/nonce-a/result",
            f"{BASE}/dev/dev-a/state/deeper",
            "rengo/v1/elsewhere/dev/dev-a/state",
        ):
            for qos, retain in ((0, False), (1, False), (1, True)):
                attacker.publish(topic, b"forged", qos=qos, retain=retain).wait_for_publish(5)
        attacker.publish(STATE_A, b"honest", qos=1).wait_for_publish(5)
        reader.wait(lambda: b"honest" in reader.payloads)
    late = Owner()
    place.session(late, f"{BASE}/#", endpoint=place.endpoint(client_id="late"))
    quiet_for(0.2, late)
    assert set(reader.payloads + late.payloads) == {b"honest"}


def test_a_claimant_has_its_nonce_alone(place: Place) -> None:
    reader = watcher(place)
    with place.raw("nonce-a", "claimant") as claimant:
        for topic in (f"{BASE}/enroll/nonce-b", f"{BASE}/enroll/nonce-a/result", STATE_A):
            claimant.publish(topic, b"forged", qos=1).wait_for_publish(5)
        claimant.publish(f"{BASE}/enroll/nonce-a", b"claim", qos=1).wait_for_publish(5)
        reader.wait(lambda: b"claim" in reader.payloads)
    assert reader.payloads == [b"claim"]


def test_a_device_reads_its_own_alone(place: Place) -> None:
    heard: list[tuple[str, bytes]] = []
    writer = place.publisher()
    for topic in (TASK_A, STATE_A, f"{BASE}/dev/dev-a/receipt"):
        writer.publish(Publication(topic, b"secret", retain=True))
    assert writer.flush(10)
    with place.raw("dev-b", "spy") as spy:
        spy.on_message = lambda _client, _data, message: heard.append(
            (message.topic, message.payload)
        )
        subscribe(
            spy,
            *("#", "+/#", "+/+/+/+/+/+", f"{BASE}/#", f"{BASE}/dev/#", f"{BASE}/dev/+/task"),
            *(TASK_A, STATE_A, f"{BASE}/dev/dev-a/#", f"{BASE}/op/op-a/reply"),
            *("$SYS/#", "$MQTT/#", "$JS/#", f"$share/spies/{TASK_A}", "$share/spies/#"),
            f"{BASE}/dev/dev-b/task",
        )
        for topic in (TASK_A, STATE_A, f"{BASE}/op/op-a/reply", f"{BASE}/op/op-a/request"):
            writer.publish(Publication(topic, b"secret"))
        # its own orders come, the second when the broker has had the time of a whole round trip
        own = f"{BASE}/dev/dev-b/task"
        for number in (b"order 1", b"order 2"):
            writer.publish(Publication(own, number))
            assert writer.flush(10)
            eventually(lambda number=number: (own, number) in heard)
    assert set(heard) == {(own, b"order 1"), (own, b"order 2")}


@pytest.mark.parametrize("topic", [STATE_B, TASK_A, SERVER_STATE, f"{BASE}/run/r1/state"])
def test_a_forged_will_reaches_nobody(place: Place, topic: str) -> None:
    reader = watcher(place)
    try:
        with place.raw("dev-a", "forger", will=topic):
            pass
    except AssertionError:
        pass  # refused with its will, which is as good
    with place.raw("dev-a", "honest", will=STATE_A):
        pass
    reader.wait(lambda: bool(reader.deliveries))
    quiet_for(0.3, reader)
    assert [each.topic for each in reader.deliveries] == [STATE_A]


def test_what_is_acknowledged_and_dropped_is_not_forgotten(place: Place) -> None:
    reader = watcher(place)
    outbox = place.outbox()
    device = place.session(Owner(), endpoint=place.endpoint("dev-b"), outbox=outbox, resend_s=0.3)
    device.publish_durably("result", RESULT_A, b"result", until="confirm")
    quiet_for(1.0, reader)
    assert len(outbox) == 1
    widened = BrokerUser("dev-b", "secret-of-dev-b", Grants((f"{BASE}/#",), ()))
    place.broker.reload([widened, *(each for each in USERS if each.name != "dev-b")])
    reader.wait(lambda: b"result" in reader.payloads)
    assert len(outbox) == 1
    assert device.confirm("result")


@pytest.mark.parametrize(
    ("name", "password"), [("dev-a", "not-the-secret"), ("nobody", "secret-of-nobody"), ("", "")]
)
def test_a_stranger_is_refused(place: Place, name: str, password: str) -> None:
    endpoint = place.endpoint("dev-a", "stranger")
    session = MqttSession(
        Endpoint(
            endpoint.host,
            endpoint.port,
            name,
            password,
            "stranger",
            protocol=endpoint.protocol,
            tls=endpoint.tls,
        ),
        (),
        lambda _: True,
    )
    session.start()
    with pytest.raises(AuthenticationFailed):
        session.wait_connected(10)
    session.stop()


# --- users that change ---------------


def test_a_removed_user_is_cut_off_and_the_others_stay(place: Place) -> None:
    kept, removed = Owner(), Owner()
    place.session(kept, TASK_A, endpoint=place.endpoint("dev-b"))
    place.session(removed, TASK_A, endpoint=place.endpoint("dev-a"))
    began = time.monotonic()
    place.access().apply(WITHOUT_A)
    removed.wait(lambda: bool(removed.losses), 5)
    assert time.monotonic() - began < 5
    removed.wait(lambda: any(isinstance(each, AuthenticationFailed) for each in removed.faults))
    server = as_server(place)
    server.publish(Publication(f"{BASE}/dev/dev-b/task", b"order"))
    assert server.flush(10)
    assert not kept.losses
    assert kept.session is not None
    assert kept.session.connected


def test_a_removed_user_does_not_come_back_by_its_session(place: Place) -> None:
    with place.raw("dev-a", "known", clean=False) as client:
        subscribe(client, TASK_A)
        place.access().apply(WITHOUT_A)
        eventually(lambda: not client.is_connected(), 5)
    again = place.session(Owner(), endpoint=place.endpoint("dev-a", "known"), wait=False)
    with pytest.raises(AuthenticationFailed):
        again.wait_connected(10)


def test_a_new_user_is_admitted_and_nobody_is_disturbed(place: Place) -> None:
    owners = {name: Owner() for name in ("dev-a", "dev-b", "server")}
    for name, owner in owners.items():
        place.session(owner, endpoint=place.endpoint(name))
    place.access().apply([*USERS, user("dev-c", Role.DEVICE)])
    newcomer = Owner()
    session = place.session(newcomer, endpoint=place.endpoint("dev-c"))
    session.publish(Publication(f"{BASE}/dev/dev-c/state", b"ready"))
    assert session.flush(10)
    assert not any(owner.losses for owner in owners.values())


def test_a_new_password_counts_at_once_and_the_old_one_no_more(place: Place) -> None:
    old, other = Owner(), Owner()
    place.session(old, endpoint=place.endpoint("dev-a"))
    place.session(other, endpoint=place.endpoint("dev-b"))
    place.access().apply([user("dev-a", Role.DEVICE, "another-secret"), *WITHOUT_A])
    old.wait(lambda: any(isinstance(each, AuthenticationFailed) for each in old.faults), 10)
    endpoint = place.endpoint("dev-a", "renewed")
    fresh = MqttSession(
        Endpoint(
            *place.broker.endpoint,
            "dev-a",
            "another-secret",
            "renewed",
            protocol=endpoint.protocol,
        ),
        (),
        lambda _: True,
    )
    fresh.start()
    fresh.wait_connected(10)
    fresh.stop()
    assert not other.losses


def test_the_same_users_again_disturb_nobody(place: Place) -> None:
    owner = Owner()
    place.session(owner, endpoint=place.endpoint("dev-a"))
    for _ in range(3):
        place.access().apply(USERS)
    assert not owner.losses


def test_bad_users_change_nothing(place: Place) -> None:
    owner = Owner()
    place.session(owner, endpoint=place.endpoint("dev-a"))
    with pytest.raises(ConfigError, match="twice: dev-a"):
        place.access().apply([*USERS, USERS[0]])
    with pytest.raises(ConfigError, match="at least one user"):
        place.access().apply([])
    assert place.broker.running
    assert not owner.losses


def test_an_absent_broker_finds_the_users_at_its_start(place: Place) -> None:
    place.broker.stop()
    place.access().apply([user("dev-c", Role.DEVICE), ANYONE])
    place.broker.start(None)
    place.session(Owner(), endpoint=place.endpoint("dev-c"))
    with pytest.raises(AuthenticationFailed):
        place.session(Owner(), endpoint=place.endpoint("dev-a"), wait=False).wait_connected(10)


def test_a_restart_keeps_the_users_that_were_written_meanwhile(place: Place) -> None:
    place.access().apply([user("dev-c", Role.DEVICE), ANYONE])
    place.broker.kill()
    place.broker.start(None)
    place.session(Owner(), endpoint=place.endpoint("dev-c"))


def test_a_folder_without_users_is_named(place: Place, tmp_path: Path) -> None:
    place.folder = tmp_path / "new"
    place.broker.stop()
    place.renew()
    with pytest.raises(ConfigError, match="knows no users yet"):
        place.broker.start(None)
    place.broker.start(USERS)


def test_a_start_waits_for_who_changes_the_users(place: Place) -> None:
    """And so does a change for a start: the broker that comes up has read what was written."""
    place.broker.stop()
    # kept until the end: the kernel ends a child together with the thread that started it
    with ThreadPoolExecutor(1) as pool:
        with place.access().exclusive():
            starting = pool.submit(place.broker.start, None)
            with pytest.raises(TimeoutError):
                starting.result(0.4)
            place.access().write([*USERS, user("dev-c", Role.DEVICE)])
        starting.result()
        place.session(Owner(), endpoint=place.endpoint("dev-c"))


APPLYING = """
import sys
from pathlib import Path
from broker.wire.access import Role
from broker.brokers.mosquitto import MosquittoAccess
from broker.brokers.nats import NatsAccess
from tests.integration.broker_fixtures import USERS, user
kind = {"nats": NatsAccess, "mosquitto": MosquittoAccess}[sys.argv[1]]
kind(Path(sys.argv[2])).apply([*USERS, user("dev-c", Role.DEVICE)])
"""


def test_another_process_changes_the_users(place: Place) -> None:
    folder = str(place.broker.data_dir)
    subprocess.run([sys.executable, "-c", APPLYING, place.kind.server, folder], check=True)
    place.session(Owner(), endpoint=place.endpoint("dev-c"))


def test_changes_by_many_at_once_all_return(place: Place) -> None:
    with ThreadPoolExecutor(5) as pool:
        for change in [pool.submit(place.access().apply, USERS) for _ in range(5)]:
            change.result()


# --- the process ---------------


def test_secrets_are_in_private_files_only(place: Place) -> None:
    folder = place.broker.data_dir
    place.session(Owner(), endpoint=place.endpoint("dev-a"))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for path in folder.iterdir():
        if path.is_file() and path.name not in {"broker.pid", "broker.lock", "users.lock"}:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    holding = {
        path.name
        for path in folder.rglob("*")
        if path.is_file() and b"secret-of-dev-a" in path.read_bytes()
    }
    assert holding == ({"users.conf"} if place.kind.server == "nats" else set())
    assert "secret-of" not in " ".join(psutil.Process(place.broker.pid).cmdline())


def test_it_listens_on_loopback_alone(place: Place) -> None:
    listening = [
        each.laddr
        for each in psutil.Process(place.broker.pid).net_connections("tcp")
        if each.status == psutil.CONN_LISTEN
    ]
    assert {each.ip for each in listening} == {"127.0.0.1"}
    assert place.broker.endpoint.port in {each.port for each in listening}


def test_a_start_says_nothing_of_an_error(place: Place) -> None:
    log = (place.broker.data_dir / "broker.log").read_text()
    assert "error" not in log.lower()
    assert len(log.splitlines()) < 40


def test_a_folder_with_a_space_serves(place: Place, tmp_path: Path) -> None:
    place.broker.stop()
    place.folder = tmp_path / "a folder with spaces"
    place.renew()
    place.start()
    place.session(Owner(), endpoint=place.endpoint("dev-a"))
    place.access().apply(USERS)


def test_a_port_and_a_folder_in_use_are_named(place: Place, tmp_path: Path) -> None:
    broker, port = place.broker, place.broker.endpoint.port
    place.renew(free_port())
    with pytest.raises(ConfigError, match="another MQTT broker uses"):
        place.start()
    folder, place.folder = place.folder, tmp_path / "elsewhere"
    place.renew(port)
    with pytest.raises(ConfigError, match=f"port {port} for the MQTT broker"):
        place.start()
    place.folder, place.broker = folder, broker
    assert broker.running


PARENT = """
import sys, threading
from pathlib import Path
from broker.brokers.nats import EmbeddedBroker
from broker.brokers.mosquitto import MosquittoBroker
from tests.integration.broker_fixtures import USERS
kind = {"nats": EmbeddedBroker, "mosquitto": MosquittoBroker}[sys.argv[1]]
broker = kind(Path(sys.argv[2]), int(sys.argv[3]))
broker.start(USERS)
print(broker.pid, flush=True)
threading.Event().wait()
"""


def test_a_killed_parent_leaves_nothing_in_the_way(place: Place, tmp_path: Path) -> None:
    place.broker.stop()
    port, place.folder = free_port(), tmp_path / "orphan"
    arguments = [place.kind.server, str(place.folder / "broker"), str(port)]
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, *arguments], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    place.renew(port)
    place.start()
    assert place.broker.pid != pid
    eventually(lambda: not psutil.pid_exists(pid))


def test_a_server_that_cannot_start_says_why(place: Place) -> None:
    place.broker.stop()
    block = place.broker.data_dir / ("jetstream" if place.kind.server == "nats" else "passwords")
    if block.is_dir():
        block.rename(block.with_name("aside"))
    block.unlink(missing_ok=True)
    if place.kind.server == "nats":
        block.write_text("a file where a folder must be")
    else:
        block.mkdir()
    with pytest.raises((TransportError, OSError)):
        place.broker.start(USERS)
    assert not place.broker.running


def test_a_denied_subscription_brings_nothing(place: Place) -> None:
    owner = Owner()
    place.session(owner, TASK_A, endpoint=place.endpoint("dev-b"))
    as_server(place).publish(Publication(TASK_A, b"order"))
    quiet_for(0.3, owner)
    # mosquitto grants every subscription, and asks the rules at each delivery
    assert bool(owner.faults) == (place.kind.server == "nats")


# --- TLS ---------------


@dataclass(frozen=True)
class Secured:
    """A place that speaks TLS, and the authority of its certificates."""

    place: Place
    authority: Authority

    def client(self, name: str) -> Tls:
        """What a client with a certificate of its own shows."""
        certificate, key = self.authority.issue_client(name)
        files = [self.place.folder / f"{name}.{kind}" for kind in ("crt", "key")]
        for path, text in zip(files, (certificate, key), strict=True):
            path.write_text(text)
        return Tls(self.authority.certificate_pem, *files)

    def attempt(self, name: str, tls: Tls | None, password: str = "") -> MqttSession:
        """A session of ``name`` that has begun to connect."""
        endpoint = replace(self.place.endpoint(name), tls=tls)
        if password:
            endpoint = replace(endpoint, password=password)
        return self.place.session(Owner(), endpoint=endpoint, wait=False)


def secured(
    place: Place, *, names: Sequence[str] = ("127.0.0.1",), mutual: bool = False
) -> Secured:
    """Restart the broker of ``place`` with TLS."""
    place.broker.stop()
    authority = Authority(place.folder / "authority")
    client_ca = authority.certificate_path if mutual else None
    place.renew(tls=ListenerTls(*authority.issue_server(names), client_ca))
    place.tls = Tls(authority.certificate_pem)
    place.broker.start(None)
    return Secured(place, authority)


def test_tls_serves_those_who_trust_its_authority(place: Place) -> None:
    site = secured(place)
    reader = watcher(place, RESULT_A)
    session = site.attempt("dev-a", place.tls)
    session.wait_connected(10)
    session.publish(Publication(RESULT_A, bytes(MAX_MESSAGE_BYTES)))
    reader.wait(lambda: [len(each) for each in reader.payloads] == [MAX_MESSAGE_BYTES])
    place.access().apply(WITHOUT_A)
    eventually(lambda: not session.connected, 5)
    assert not reader.losses


def test_a_broker_with_tls_may_listen_everywhere(place: Place) -> None:
    site = secured(place)
    place.broker.stop()
    tls = ListenerTls(*site.authority.issue_server(["127.0.0.1"]))
    place.renew(host="0.0.0.0", tls=tls)
    place.broker.start(None)
    site.attempt("dev-a", place.tls).wait_connected(10)
    mqtt_port = place.broker.endpoint.port
    others = {
        each.laddr.ip
        for each in psutil.Process(place.broker.pid).net_connections("tcp")
        if each.status == psutil.CONN_LISTEN and each.laddr.port != mqtt_port
    }
    assert others <= {"127.0.0.1"}


def test_a_broker_of_an_unknown_authority_is_not_trusted(place: Place, tmp_path: Path) -> None:
    site = secured(place)
    stranger = Authority(tmp_path / "stranger")
    with pytest.raises(UntrustedPeer, match="no authority that is trusted"):
        site.attempt("dev-a", Tls(stranger.certificate_pem)).wait_connected(10)


def test_a_broker_of_another_name_is_not_trusted(place: Place) -> None:
    site = secured(place, names=["broker.example"])
    with pytest.raises(UntrustedPeer, match=r"127\.0\.0\.1"):
        site.attempt("dev-a", place.tls).wait_connected(10)


def test_an_expired_certificate_is_named(place: Place) -> None:
    past = Validity(datetime(2001, 1, 1, tzinfo=UTC), datetime(2002, 1, 1, tzinfo=UTC))
    place.broker.stop()
    authority = Authority(place.folder / "expired", past)
    place.renew(tls=ListenerTls(*authority.issue_server(["127.0.0.1"])))
    place.broker.start(None)
    site = Secured(place, authority)
    with pytest.raises(TransportError, match="expired"):
        site.attempt("dev-a", Tls(authority.certificate_pem)).wait_connected(3)


def test_plaintext_does_not_pass_where_tls_is_spoken(place: Place) -> None:
    site = secured(place)
    session = site.attempt("dev-a", None)
    with pytest.raises(TransportError):
        session.wait_connected(2)
    assert not session.connected


def test_tls_does_not_pass_where_plaintext_is_spoken(place: Place, tmp_path: Path) -> None:
    site = Secured(place, Authority(tmp_path / "authority"))
    with pytest.raises(TransportError):
        site.attempt("dev-a", Tls(site.authority.certificate_pem)).wait_connected(2)


def test_mutual_tls_admits_a_certificate_with_its_password(place: Place) -> None:
    site = secured(place, mutual=True)
    with pytest.raises(TransportError):
        site.attempt("dev-b", place.tls).wait_connected(3)
    reader, ours = Owner(), site.client("anyone")
    place.session(reader, STATE_A, endpoint=replace(place.endpoint(), tls=ours))
    session = site.attempt("dev-a", site.client("dev-a"))
    session.wait_connected(10)
    for topic in (STATE_B, STATE_A):
        session.publish(Publication(topic, b"ready"))
    reader.wait(lambda: bool(reader.payloads))
    assert [each.topic for each in reader.deliveries] == [STATE_A]


def test_mutual_tls_refuses_a_certificate_with_a_wrong_password(place: Place) -> None:
    site = secured(place, mutual=True)
    with pytest.raises(AuthenticationFailed):
        site.attempt("dev-a", site.client("dev-a"), "not-the-secret").wait_connected(10)


def test_mutual_tls_refuses_a_certificate_of_another_authority(
    place: Place, tmp_path: Path
) -> None:
    site = secured(place, mutual=True)
    stranger = Secured(place, Authority(tmp_path / "stranger"))
    forged = replace(stranger.client("dev-a"), ca=site.authority.certificate_pem)
    with pytest.raises(TransportError):
        site.attempt("dev-a", forged).wait_connected(3)


def test_mutual_tls_binds_the_name_to_the_certificate_on_nats_alone(place: Place) -> None:
    site = secured(place, mutual=True)
    session = site.attempt("dev-b", site.client("dev-a"))
    if place.kind.server == "nats":
        with pytest.raises(AuthenticationFailed):
            session.wait_connected(10)
    else:
        session.wait_connected(10)


def test_mutual_tls_cuts_off_a_removed_user(place: Place) -> None:
    site = secured(place, mutual=True)
    removed = site.attempt("dev-a", site.client("dev-a"))
    kept = site.attempt("dev-b", site.client("dev-b"))
    for session in (removed, kept):
        session.wait_connected(10)
    place.access().apply([*WITHOUT_A, user("dev-c", Role.DEVICE)])
    eventually(lambda: not removed.connected, 5)
    assert kept.connected
    site.attempt("dev-c", site.client("dev-c")).wait_connected(10)


def test_users_stay_known_when_mutual_tls_is_switched_off(place: Place) -> None:
    secured(place, mutual=True)
    place.broker.stop()
    place.tls = None
    place.renew()
    place.broker.start(None)
    place.session(Owner(), endpoint=place.endpoint("dev-a"))


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.7"])
def test_no_plaintext_beyond_loopback(kind: Kind, tmp_path: Path, host: str) -> None:
    place = Place(kind, tmp_path)
    with pytest.raises(ConfigError, match="needs TLS"):
        place.renew(host=host)
    with pytest.raises(ConfigError, match="IPv4"):
        place.renew(host="broker.example")
    with pytest.raises(ConfigError, match="does not exist"):
        ListenerTls(tmp_path / "none.crt", tmp_path / "none.key")
