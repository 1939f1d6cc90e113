"""Every behaviour of paho and of MQTT that loses, doubles or hides messages, on a real broker."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import broker.session.session
from broker.session.endpoint import ClientIdInUse, Endpoint
from broker.session.inbox import Connected, SessionEvent
from broker.session.outbox import Outbox
from broker.session.publication import Publication
from broker.session.session import MqttSession
from broker.wire.limits import MAX_MESSAGE_BYTES, MessageTooLarge
from runtime.errors import (
    AuthenticationFailed,
    ConfigError,
    InvalidTransition,
    TransportError,
)
from runtime.processes.ports import free_port
from tests.integration.broker_fixtures import (
    BASE,
    USERS,
    Owner,
    Site,
    answer,
    eventually,
    process,
    quiet_for,
    site,
)

__all__ = ["site"]

TOPIC = f"{BASE}/dev/dev-a/task"


def test_a_publish_while_offline_says_so_and_is_not_sent_later(site: Site) -> None:
    reader = Owner()
    site.session(reader, TOPIC)
    writer = site.publisher()
    site.broker.kill()
    eventually(lambda: not writer.connected)
    assert not any(writer.publish(Publication(TOPIC, b"lost")) for _ in range(5))
    site.start()
    eventually(lambda: writer.connected)
    assert writer.publish(Publication(TOPIC, b"now"))
    reader.wait(lambda: b"now" in reader.payloads)
    quiet_for(0.5, reader)
    assert reader.payloads == [b"now"]


def test_an_exception_in_the_callback_is_a_fault_and_the_message_comes_again(site: Site) -> None:
    owner = Owner()
    session = site.session(owner, TOPIC)
    owner.raising = ValueError("a bug of the owner")
    site.publisher().publish(Publication(TOPIC, b"one"))
    owner.wait(lambda: bool(owner.faults))
    assert str(owner.faults[0]) == "a bug of the owner"
    assert session.connected
    owner.raising = None
    owner.wait(lambda: owner.payloads == [b"one"])
    assert len(owner.connections) == 1, "the network thread must survive"


def test_messages_queue_for_a_client_that_is_away_and_come_after_its_restart(site: Site) -> None:
    site.session(Owner(), TOPIC).stop()
    writer = site.publisher()
    expected = [str(number).encode() for number in range(40)]
    for payload in expected:
        assert writer.publish(Publication(TOPIC, payload))
    assert writer.flush(10)
    owner = Owner()
    site.session(owner, TOPIC)
    owner.wait(lambda: len(owner.deliveries) >= 40)
    assert owner.payloads == expected
    assert owner.connections[0].session_present


def test_a_client_that_is_not_persistent_leaves_no_queue(site: Site) -> None:
    site.session(Owner(), TOPIC, endpoint=site.endpoint(persistent=False)).stop()
    writer = site.publisher()
    writer.publish(Publication(TOPIC, b"for nobody"))
    assert writer.flush(10)
    owner = Owner()
    site.session(owner, TOPIC)
    assert not owner.connections[0].session_present
    quiet_for(0.5, owner)


def test_a_killed_broker_keeps_session_queue_and_retained(site: Site) -> None:
    site.session(Owner(), TOPIC, f"{BASE}/server/state").stop()
    writer = site.publisher()
    writer.publish(Publication(f"{BASE}/server/state", b"document", retain=True))
    for number in range(10):
        writer.publish(Publication(TOPIC, str(number).encode()))
    assert writer.flush(10)
    site.restart_after_kill()
    owner = Owner()
    site.session(owner, TOPIC, f"{BASE}/server/state")
    owner.wait(lambda: len(set(owner.payloads)) == 11)
    assert owner.connections[0].session_present
    assert set(owner.payloads) == {b"document", *(str(n).encode() for n in range(10))}


def test_a_broker_that_lost_its_state_gets_the_subscriptions_again(site: Site) -> None:
    owner = Owner()
    site.session(owner, TOPIC)
    site.broker.kill()
    shutil.rmtree(site.broker.data_dir / "jetstream")
    site.start()
    owner.wait(lambda: len(owner.connections) == 2)
    assert not owner.connections[1].session_present
    site.publisher().publish(Publication(TOPIC, b"after"))
    owner.wait(lambda: owner.payloads == [b"after"])


def test_retained_documents_come_afresh_with_every_connection(site: Site) -> None:
    state = f"{BASE}/server/state"
    site.publisher().publish(Publication(state, b"document", retain=True))
    owner = Owner()
    site.session(owner, state)
    owner.wait(lambda: owner.payloads == [b"document"])
    site.restart_after_kill()
    owner.wait(lambda: owner.payloads == [b"document", b"document"])


def test_an_unacknowledged_message_comes_again_and_an_acknowledged_one_does_not(
    site: Site,
) -> None:
    owner = Owner(acks=False)
    session = site.session(owner, TOPIC)
    writer = site.publisher()
    writer.publish(Publication(TOPIC, b"journalled"))
    writer.publish(Publication(TOPIC, b"not yet"))
    owner.wait(lambda: len(owner.deliveries) == 2)
    session.ack(owner.deliveries[0])
    owner.wait(lambda: owner.payloads.count(b"not yet") == 2)
    session.ack(owner.deliveries[-1])
    quiet_for(2.0, owner)
    assert owner.payloads.count(b"journalled") == 1


def test_an_unacknowledged_message_survives_the_process(site: Site) -> None:
    owner = Owner(acks=False)
    session = site.session(owner, TOPIC)
    site.publisher().publish(Publication(TOPIC, b"work"))
    owner.wait(lambda: owner.payloads == [b"work"])
    session.stop()
    again = Owner()
    site.session(again, TOPIC)
    again.wait(lambda: again.payloads == [b"work"])


def test_an_acknowledgement_of_an_older_connection_is_dropped(site: Site) -> None:
    owner = Owner(acks=False)
    session = site.session(owner, TOPIC)
    writer = site.publisher()
    writer.publish(Publication(TOPIC, b"first"))
    owner.wait(lambda: owner.payloads == [b"first"])
    old = owner.deliveries[0]
    site.restart_after_kill()
    owner.wait(lambda: len(owner.deliveries) == 2)
    new = owner.deliveries[1]
    assert new.payload == b"first"
    assert new.generation > old.generation
    session.ack(old)  # the same message id may mean another message by now
    owner.wait(lambda: len(owner.deliveries) == 3)
    session.ack(owner.deliveries[-1])
    quiet_for(2.0, owner)


def test_a_killed_publisher_loses_nothing_that_it_stored(site: Site) -> None:
    owner = Owner()
    site.session(owner, TOPIC)
    port = site.broker.endpoint.port
    order = {"outbox": str(site.folder / "killed.db"), "client_id": "killed", "topic": TOPIC}
    with process(**order, port=free_port(), count=200) as first:
        assert answer(first) == {"pending": 200}
        first.send_signal(signal.SIGKILL)
        first.wait()
    with process(**order, port=port, connect=True) as second:
        assert answer(second) == {"flushed": True}
        assert answer(second) == {"pending": 0}
    owner.wait(lambda: len(owner.deliveries) >= 200)
    quiet_for(0.3, owner)
    assert owner.payloads == [str(number).encode() for number in range(200)]


def test_the_outbox_sends_each_message_once_over_a_broker_restart(site: Site) -> None:
    owner = Owner()
    site.session(owner, TOPIC)
    outbox = site.outbox()
    writer_owner = Owner()
    writer = site.session(writer_owner, endpoint=site.endpoint(client_id="writer"), outbox=outbox)
    site.broker.kill()
    eventually(lambda: not writer.connected)
    for number in range(60):
        writer.publish_durably(f"k{number}", TOPIC, str(number).encode(), until="puback")
        writer.publish_durably(
            f"k{number}", TOPIC, str(number).encode(), until="puback"
        )  # a naive retry
    assert not writer.flush(0.1)
    site.start()
    assert writer.flush(20)
    owner.wait(lambda: len(owner.deliveries) >= 60, 20)
    quiet_for(1.0, owner)
    assert Counter(owner.payloads) == Counter(str(number).encode() for number in range(60))
    assert len(outbox) == 0


def test_a_message_is_sent_again_until_it_is_confirmed(site: Site) -> None:
    owner = Owner()
    site.session(owner, TOPIC)
    outbox = site.outbox()
    writer = site.session(
        Owner(), endpoint=site.endpoint(client_id="writer"), outbox=outbox, resend_s=0.3
    )
    writer.publish_durably("result", TOPIC, b"result", until="confirm")
    owner.wait(lambda: len(owner.deliveries) >= 3)
    assert len(outbox) == 1
    assert writer.confirm("result")
    assert not writer.confirm("result")
    eventually(lambda: writer.flush(1))
    time.sleep(0.2)  # one that was under way
    quiet_for(1.0, owner)
    assert len(outbox) == 0


def test_an_unconfirmed_message_is_sent_again_after_a_reconnect(site: Site) -> None:
    owner = Owner()
    site.session(owner, TOPIC)
    writer_owner = Owner()
    writer = site.session(
        writer_owner, endpoint=site.endpoint(client_id="writer"), outbox=site.outbox(), resend_s=600
    )
    writer.publish_durably("result", TOPIC, b"result", until="confirm")
    owner.wait(lambda: owner.payloads == [b"result"])
    quiet_for(0.5, owner)
    site.restart_after_kill()
    owner.wait(lambda: owner.payloads == [b"result", b"result"])


def test_twin_client_ids_are_reported_and_do_not_storm(site: Site) -> None:
    owners = [Owner(), Owner()]
    for owner in owners:
        site.session(owner, TOPIC, wait=False)

    def reported() -> list[Exception]:
        return [
            fault for owner in owners for fault in owner.faults if isinstance(fault, ClientIdInUse)
        ]

    eventually(lambda: bool(reported()), 60)
    assert "another process uses the same identity" in str(reported()[0])
    connections = sum(len(owner.connections) for owner in owners)
    assert connections <= 12
    time.sleep(3)
    assert sum(len(owner.connections) for owner in owners) <= connections + 4


def test_the_socket_does_not_wait_for_acknowledgements(site: Site) -> None:
    owner = Owner()
    session = site.session(owner, TOPIC)
    link = session._connection
    assert link is not None
    sock = link._client.socket()
    assert isinstance(sock, socket.socket)
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


def test_a_message_over_the_limit_is_refused_before_it_is_sent(site: Site) -> None:
    owner = Owner()
    site.session(owner, TOPIC)
    outbox = site.outbox()
    writer = site.session(Owner(), endpoint=site.endpoint(client_id="writer"), outbox=outbox)
    too_large = bytes(MAX_MESSAGE_BYTES + 1)
    with pytest.raises(MessageTooLarge, match="262145 bytes"):
        writer.publish(Publication(TOPIC, too_large))
    with pytest.raises(MessageTooLarge):
        writer.publish_durably("k", TOPIC, too_large, until="puback")
    writer.publish_durably("k", TOPIC, bytes(MAX_MESSAGE_BYTES), until="puback")
    assert writer.flush(10)
    owner.wait(lambda: [len(each) for each in owner.payloads] == [MAX_MESSAGE_BYTES])


def test_a_topic_that_would_cut_the_connection_is_refused(site: Site) -> None:
    session = site.session(Owner())
    for topic in ("a b", "a/+/c", "#", "a//b", "$SYS/x", "a.b", ""):
        with pytest.raises(ConfigError):
            session.publish(Publication(topic, b""))


def test_the_will_of_a_killed_process_arrives_within_a_second(site: Site) -> None:
    will = f"{BASE}/dev/dev-a/state"
    owner = Owner()
    site.session(owner, will)
    with process(
        outbox=str(site.folder / "mortal.db"),
        client_id="mortal",
        topic=TOPIC,
        port=site.broker.endpoint.port,
        connect=True,
        will=will,
    ) as child:
        assert answer(child) == {"flushed": True}
        child.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        owner.wait(lambda: owner.payloads == [b"gone"])
        assert time.monotonic() - killed < 1.0


def test_a_session_that_stops_says_farewell_and_leaves_no_will(site: Site) -> None:
    state = f"{BASE}/dev/dev-a/state"
    owner = Owner()
    site.session(owner, state)
    session = site.session(
        Owner(), endpoint=site.endpoint(client_id="polite"), will=Publication(state, b"gone")
    )
    session.stop(Publication(state, b"farewell"))
    owner.wait(lambda: owner.payloads == [b"farewell"])
    quiet_for(0.5, owner)


@pytest.fixture
def soon_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session connects again a second after its inbox refused a message, not five."""
    monkeypatch.setattr("broker.session.session._REDELIVER_AFTER_S", 1.0)


def test_a_full_inbox_leaves_messages_with_the_broker(site: Site, soon_again: None) -> None:
    owner = Owner(limit=6)
    site.session(owner, TOPIC)
    writer = site.publisher()
    expected = {str(number).encode() for number in range(50)}
    for payload in expected:
        writer.publish(Publication(TOPIC, payload))
    assert writer.flush(10)
    eventually(lambda: len(owner.events) == 6, 15)
    quiet_for(0.5, owner)
    seen: set[bytes] = set()

    def room_again() -> bool:
        seen.update(each.payload for each in owner.take_all() if hasattr(each, "payload"))
        return seen == expected

    eventually(room_again, 60)


def test_a_retained_document_that_found_the_inbox_full_comes_again(
    site: Site, soon_again: None
) -> None:
    state = f"{BASE}/server/state"
    site.publisher().publish(Publication(state, b"document", retain=True))
    owner = Owner(limit=1)
    site.session(owner, state)
    quiet_for(0.3, owner)
    assert [type(each) for each in owner.events] == [Connected]
    owner.limit = None
    owner.wait(lambda: owner.payloads == [b"document"], 15)


def test_connected_comes_before_the_deliveries_even_from_a_full_inbox(site: Site) -> None:
    site.publisher().publish(Publication(f"{BASE}/server/state", b"document", retain=True))
    owner = Owner(limit=0)
    site.session(owner, f"{BASE}/server/state")
    owner.limit = None
    owner.wait(lambda: bool(owner.deliveries), 15)
    assert isinstance(owner.events[0], Connected)


def test_what_the_owner_publishes_on_connected_is_never_dropped(site: Site) -> None:
    reader = Owner()
    site.session(reader, TOPIC)
    said: list[bool] = []

    class Announcer(Owner):
        def __call__(self, event: SessionEvent) -> bool:
            if isinstance(event, Connected) and self.session is not None:
                state = b"state %d" % (len(said) + 1)
                said.append(self.session.publish(Publication(TOPIC, state)))
            return super().__call__(event)

    announcer = Announcer()
    site.session(announcer, endpoint=site.endpoint(client_id="announcer"))
    reader.wait(lambda: reader.payloads == [b"state 1"])
    site.restart_after_kill()
    announcer.wait(lambda: len(announcer.connections) == 2)
    # the kill may undo the acknowledgement of the first, which then comes again
    reader.wait(lambda: b"state 2" in reader.payloads)
    assert said == [True, True]


def test_a_burst_of_orders_is_neither_dropped_nor_slow(site: Site) -> None:
    reader = Owner()
    site.session(reader, TOPIC)
    writer = site.publisher()
    began = time.monotonic()
    bodies = [b"%1000d" % number for number in range(3000)]
    assert all(writer.publish(Publication(TOPIC, body)) for body in bodies)
    assert writer.flush(30)
    # one that was acknowledged late comes twice
    reader.wait(lambda: len(reader.deliveries) >= 3000 and len({*reader.payloads}) == 3000, 30)
    assert time.monotonic() - began < 20


def test_a_wrong_password_is_told_at_once(site: Site) -> None:
    host, port = site.broker.endpoint
    owner = Owner()
    session = site.session(
        owner, endpoint=Endpoint(host, port, "dev-a", "not-the-secret", "dev-a-1"), wait=False
    )
    began = time.monotonic()
    with pytest.raises(AuthenticationFailed, match="'dev-a'"):
        session.wait_connected(20)
    assert time.monotonic() - began < 3
    owner.wait(lambda: any(isinstance(each, AuthenticationFailed) for each in owner.faults))


def test_a_broker_that_reads_its_users_anew_is_asked_once_more() -> None:
    """NATS refuses who comes in that moment, although it knows the password."""
    not_authorized, accepted = b"\x20\x02\x00\x05", b"\x20\x02\x00\x00"
    owner = Owner()
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as lines:

        def answer() -> None:
            for connack in (not_authorized, accepted):
                line = lines.enter_context(listener.accept()[0])
                line.recv(4096)
                line.sendall(connack)

        broker_thread = threading.Thread(target=answer)
        broker_thread.start()
        port = listener.getsockname()[1]
        session = MqttSession(Endpoint("127.0.0.1", port, "dev-a", "s", "dev-a-1"), (), owner)
        session.start()
        session.wait_connected(20)
        broker_thread.join()
        session.stop()
    assert owner.faults == []


def test_an_unreachable_broker_is_told_with_its_address() -> None:
    port = free_port()
    session = MqttSession(
        Endpoint("127.0.0.1", port, "dev-a", "secret", "dev-a-1"), (), lambda _: True
    )
    session.start()
    with pytest.raises(TransportError, match=rf"127.0.0.1:{port}.*refused"):
        session.wait_connected(0.5)
    assert not session.publish(Publication("a", b""))
    assert not session.flush(0.05)
    session.stop()


def test_a_server_that_accepts_and_says_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker.session.session, "_CONNACK_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        session = MqttSession(
            Endpoint("127.0.0.1", silent.getsockname()[1], "dev-a", "secret", "dev-a-1"),
            (),
            lambda _: True,
        )
        session.start()
        with pytest.raises(TransportError, match="accepted the socket"):
            session.wait_connected(1.0)
        session.stop()


def test_a_denied_subscription_is_a_fault_that_names_it(site: Site) -> None:
    owner = Owner()
    site.session(owner, f"{BASE}/dev/dev-b/task", endpoint=site.endpoint("dev-a"))
    owner.wait(lambda: bool(owner.faults))
    assert f"{BASE}/dev/dev-b/task" in str(owner.faults[0])


def test_a_removed_user_is_told_and_a_restored_one_comes_back(site: Site) -> None:
    owner = Owner()
    site.session(owner, endpoint=site.endpoint("dev-a"))
    site.broker.reload([each for each in USERS if each.name != "dev-a"])
    owner.wait(lambda: any(isinstance(each, AuthenticationFailed) for each in owner.faults))
    site.broker.reload(USERS)
    owner.wait(lambda: len(owner.connections) == 2, 60)


def test_misuse_is_named(site: Site) -> None:
    session = site.session(Owner())
    with pytest.raises(InvalidTransition):
        session.publish_durably("k", TOPIC, b"", until="puback")
    with pytest.raises(InvalidTransition):
        session.start()
    with pytest.raises(ConfigError, match="client id"):
        Endpoint("h", 1, "u", "p", "no.dots")
    assert "hush" not in repr(Endpoint("h", 1, "u", "hush", "c"))


def test_an_idle_session_costs_next_to_nothing(site: Site) -> None:
    with process(
        outbox=str(site.folder / "idle.db"),
        client_id="idle",
        topic=TOPIC,
        port=site.broker.endpoint.port,
        connect=True,
        idle_s=5,
    ) as child:
        assert answer(child) == {"flushed": True}
        assert answer(child)["cpu_s"] < 0.002 * 5


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors in /proc")
def test_connections_that_ended_leave_no_descriptor(site: Site) -> None:
    owner = Owner()
    session = site.session(owner, TOPIC)
    gc.collect()
    gc.disable()
    try:
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        for number in range(3):
            site.restart_after_kill()
            owner.wait(lambda wanted=number + 2: len(owner.connections) == wanted, 20)
        assert session.connected
        assert len(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208
    finally:
        gc.enable()


def test_importing_the_session_brings_paho_and_nothing_else() -> None:
    code = (
        "import sys; import broker.session.session; "
        "print(sorted({m.partition('.')[0] for m in sys.modules} - sys.stdlib_module_names))"
    )
    shown = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}; {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(eval(shown.stdout)) <= {"broker", "runtime", "paho", "__main__"}


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
    with started(modern(mosquitto, "reader"), Owner(), TOPIC):
        pass
    with started(modern(mosquitto, "writer"), Owner()) as writer:
        writer.publish(Publication(TOPIC, b"while away"))
        assert writer.flush(10)
    owner = Owner()
    with started(modern(mosquitto, "reader"), owner, TOPIC):
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
        started(modern(mosquitto, "reader"), owner, TOPIC),
        started(modern(mosquitto, "writer"), Owner()) as writer,
    ):
        for number in range(5):
            writer.publish(Publication(TOPIC, str(number).encode()))
        assert writer.flush(10)
        owner.limit = None
        owner.wait(lambda: set(owner.payloads) == {b"0", b"1", b"2", b"3", b"4"}, 20)


def test_the_session_is_stopped_while_it_cannot_connect(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox.db")
    session = MqttSession(
        Endpoint("127.0.0.1", free_port(), "dev-a", "secret", "dev-a-1"),
        (),
        lambda _: True,
        outbox=outbox,
    )
    session.start()
    session.publish_durably("k", "a/b", b"kept", until="puback")
    session.stop()
    assert len(outbox) == 1
    outbox.close()
