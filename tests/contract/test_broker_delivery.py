"""Every broker, with every MQTT version it speaks: what is kept, wills, client ids and limits."""

from __future__ import annotations

import contextlib
import socket
import time

import paho.mqtt.client as mqtt

from broker.session.publication import Publication
from broker.wire.limits import MAX_MESSAGE_BYTES
from tests.contract.broker_clients import (
    RESULT_A,
    SERVER_STATE,
    STATE_A,
    as_server,
    subscribe,
    watcher,
)
from tests.contract.broker_places import Place, cut, kind, place
from tests.integration.broker_fixtures import BASE, TASK_A, Owner, eventually, quiet_for, settled

__all__ = ["kind", "place"]


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
