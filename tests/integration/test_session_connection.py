"""A session's connection to a real broker: refusals, wills, limits, and what it costs."""

from __future__ import annotations

import ast
import contextlib
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import broker.session.session
from broker.session.endpoint import ClientIdInUse, Endpoint
from broker.session.outbox import Outbox
from broker.session.publication import Publication
from broker.session.session import MqttSession
from broker.wire.limits import MAX_MESSAGE_BYTES, MessageTooLarge
from runtime.errors import AuthenticationFailed, ConfigError, InvalidTransition, TransportError
from runtime.processes.ports import free_port
from tests.integration.broker_fixtures import (
    BASE,
    TASK_A,
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


def test_twin_client_ids_are_reported_and_do_not_storm(site: Site) -> None:
    owners = [Owner(), Owner()]
    for owner in owners:
        site.session(owner, TASK_A, wait=False)

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
    session = site.session(owner, TASK_A)
    link = session._connection
    assert link is not None
    sock = link._client.socket()
    assert isinstance(sock, socket.socket)
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


def test_a_message_over_the_limit_is_refused_before_it_is_sent(site: Site) -> None:
    owner = Owner()
    site.session(owner, TASK_A)
    outbox = site.outbox()
    writer = site.session(Owner(), endpoint=site.endpoint(client_id="writer"), outbox=outbox)
    too_large = bytes(MAX_MESSAGE_BYTES + 1)
    with pytest.raises(MessageTooLarge, match="262145 bytes"):
        writer.publish(Publication(TASK_A, too_large))
    with pytest.raises(MessageTooLarge):
        writer.publish_durably("k", TASK_A, too_large, until="puback")
    writer.publish_durably("k", TASK_A, bytes(MAX_MESSAGE_BYTES), until="puback")
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
        topic=TASK_A,
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
        session.publish_durably("k", TASK_A, b"", until="puback")
    with pytest.raises(InvalidTransition):
        session.start()
    with pytest.raises(ConfigError, match="client id"):
        Endpoint("h", 1, "u", "p", "no.dots")
    assert "hush" not in repr(Endpoint("h", 1, "u", "hush", "c"))


def test_an_idle_session_costs_next_to_nothing(site: Site) -> None:
    with process(
        outbox=str(site.folder / "idle.db"),
        client_id="idle",
        topic=TASK_A,
        port=site.broker.endpoint.port,
        connect=True,
        idle_s=5,
    ) as child:
        assert answer(child) == {"flushed": True}
        assert answer(child)["cpu_s"] < 0.002 * 5


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors in /proc")
def test_connections_that_ended_leave_no_descriptor(site: Site) -> None:
    owner = Owner()
    session = site.session(owner, TASK_A)
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
    assert set(ast.literal_eval(shown.stdout)) <= {"broker", "runtime", "paho", "__main__"}


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
