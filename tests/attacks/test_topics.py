"""A device with valid credentials reaches for what is not its own: topics, sessions and wills."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import replace
from typing import Any

import psutil
import pytest

from broker.session.endpoint import Endpoint
from broker.session.outbox import Outbox
from broker.session.session import MqttSession
from broker.wire.messages import DeviceState, Result
from runtime.security.identity import Identity
from tests.attacks.ground import Ground
from tests.attacks.intruders import LEAVES, Intruder, pause, sample
from tests.integration.broker_fixtures import Owner, eventually
from tests.messages import SAMPLES

# what a NATS server would do for whoever could publish to it
NATS_INSIDES = (
    "$JS/API/STREAM/LIST",
    "$JS/API/STREAM/DELETE/$MQTT_sess",
    "$JS/API/STREAM/PURGE/$MQTT_msgs",
    "$JS/API/STREAM/PURGE/$MQTT_rmsgs",
    "$MQTT/sess/alice",
    "$MQTT/msgs/rengo/v1/main/dev/alice/task",
    "$SYS/REQ/SERVER/PING",
)


def honest_word(mallory: Intruder, ground: Ground) -> tuple[str, bytes]:
    topic = ground.topics.device("mallory", "progress")
    return topic, mallory.write(topic, SAMPLES["progress"])


def test_nothing_is_published_for_another(
    ground: Ground, mallory: Intruder, alice: Identity
) -> None:
    topics = ground.topics
    other = [topics.device("alice", leaf) for leaf in (*LEAVES, "task", "receipt")]
    staff = [
        *(topics.server_state, topics.run("r", "state"), topics.run("r", "events")),
        *(topics.operator("operator", "request"), topics.operator("operator", "reply")),
        *(topics.enroll("join-0"), topics.enroll("join-0", "result")),
        *(topics.device("mallory", "task"), topics.device("mallory", "receipt")),
    ]
    odd = [
        *NATS_INSIDES,
        f"{topics.device('alice', 'state')}/deeper",
        topics.device("alice", "state").replace("/", "."),
        topics.device("mallory", "state").replace("mallory", "mallory/../alice"),
        topics.device("alice", "state").replace("rengo", "/rengo"),
        "rengo/v1/elsewhere/dev/mallory/state",
    ]
    before = ground.row("alice"), ground.call("runs_ls")
    forged = [
        (topic, mallory.write(topic, sample(topic), "alice"), qos, retain)
        for topic in [*other, *staff]
        for qos, retain in ((0, False), (1, False), (1, True))
    ] + [(topic, mallory.sign(topic, b"odd"), 1, True) for topic in odd]
    with ground.unharmed(), ground.counting(), ground.eyes("alice", "mallory") as eyes:
        for topic, payload, qos, retain in forged:
            if not mallory.connected:  # a broker may close on such a topic
                with ground.intruder("mallory") as again:
                    again.publish(topic, payload, qos=qos, retain=retain)
                continue
            mallory.publish(topic, payload, qos=qos, retain=retain)
        with ground.intruder("mallory") as again:
            topic, word = honest_word(again, ground)
            again.publish(topic, word)
        eyes.wait(word)
        pause()
        with ground.eyes("alice", "mallory") as late:
            pause()
            seen = eyes.payloads | late.payloads
    assert not seen & {payload for _, payload, _, _ in forged}
    assert (ground.row("alice"), ground.call("runs_ls")) == before


def test_what_a_broker_brings_in_another_name_is_counted_and_changes_nothing(
    ground: Ground, alice: Identity
) -> None:
    """The broker is not trusted either: it lets through what its permissions forbid."""
    forger, topics = ground.intruder("mallory"), ground.topics
    with Intruder(ground.kind, alice) as honest:
        state = DeviceState(status="draining", boot_id="b", tasks=["nothing"])
        topic = topics.device("alice", "state")
        honest.publish(topic, honest.write(topic, state), retain=True)
        ground.wait_status("alice", "draining")
        before = ground.row("alice")
        # the server's user may not publish there, the victim's own may
        with ground.unharmed(), ground.counting(signature=len(LEAVES)):
            for leaf in LEAVES:
                topic = topics.device("alice", leaf)
                honest.publish(topic, forger.write(topic, sample(topic), "alice"))
        assert ground.row("alice") == before
        with ground.untrusted_broker() as inject, ground.eyes() as eyes:
            topic = topics.device("alice", "state")
            with ground.counting(signature=1):
                inject(topic, forger.write(topic, sample(topic), "alice"), retain=True)
            with ground.eyes() as late:
                pause()
                assert not late.on(topic), "what nobody may have said does not stay"
            assert eyes.on(topic)
        assert ground.row("alice") == before
    assert ground.audit(actor="alice", act="message refused")[0]["detail"] == {
        "reason": "signature"
    }


def test_another_sender_in_the_envelope_is_counted(ground: Ground, mallory: Intruder) -> None:
    topic = ground.topics.device("mallory", "result")
    with ground.unharmed(), ground.counting(wrong_sender=3):
        for sender in ("alice", "server", "operator"):
            mallory.publish(topic, mallory.write(topic, SAMPLES["result"], sender))


# --- reading --------------------------------------------------------------------------------------


def test_nothing_of_another_is_read(ground: Ground, mallory: Intruder, alice: Identity) -> None:
    topics = ground.topics
    task, receipt = topics.device("alice", "task"), topics.device("alice", "receipt")
    state = topics.device("alice", "state")
    mallory.subscribe(
        *(task, receipt, *(topics.device("alice", leaf) for leaf in LEAVES)),
        *("#", "+/#", "+/+/+/+/+/+", "rengo/#", "rengo/v1/#", "rengo/v1/+/dev/#"),
        *(topics.device("+", "task"), topics.device("+", "receipt"), topics.device("+", "state")),
        *(topics.operator("operator", "reply"), topics.operator("+", "request")),
        *(topics.run("+", "events"), topics.enroll("+"), topics.enroll("+", "result")),
        *("$SYS/#", "$SYS/broker/clients/+", "$JS/#", "$MQTT/#", "$MQTT/msgs/#", "_INBOX/#"),
        *(f"$share/x/{task}", "$share/x/#", f"$share/x/{receipt}", "$queue/#", "$/#"),
        *(task.replace("/", "."), f"{task}/#", f"/{task}"),
    )
    assert mallory.connected
    own = ground.author.sign(topics.device("mallory", "task"), SAMPLES["receipt"])
    own = replace(own, payload=b"the end")
    with ground.unharmed(), ground.untrusted_broker() as inject, ground.eyes("alice") as eyes:
        mallory.subscribe(own.topic)
        for topic in (task, receipt):
            inject(topic, b"a secret of alice's")
        inject(state, ground.intruder("alice").write(state, SAMPLES["device_state"]), retain=True)
        ground.call("devices_ls")  # something for the operator's reply
        inject(own.topic, own.payload)
        eventually(lambda: (own.topic, b"the end") in mallory.heard)
        eventually(lambda: eyes.on(receipt) == [b"a secret of alice's"])
        pause()
    # a device may read how the server and the runs are: that is all besides its own
    readable = {own.topic, topics.server_state}
    foreign = {topic for topic, _ in mallory.heard if topic not in readable}
    assert all("/run/" in topic and topic.endswith("/state") for topic in foreign), foreign


def test_a_broker_has_no_other_door(ground: Ground) -> None:
    """Its own protocol listens on loopback: a device's password does not open it."""
    identity = ground.device("mallory")
    ports = {
        each.laddr.port
        for each in psutil.Process(ground.site.broker.pid).net_connections("tcp")
        if each.status == psutil.CONN_LISTEN
    } - {identity.port}
    assert bool(ports) == (ground.kind.broker == "nats")
    for port in ports:
        said = _speak_nats(port, identity)
        assert b"Authorization Violation" in said, said
        assert b"PONG" not in said


def _speak_nats(port: int, identity: Identity) -> bytes:
    password, said = identity.password.get_secret_value(), b""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as line:
        connect = f'CONNECT {{"user":"{identity.id}","pass":"{password}","verbose":false}}'
        line.sendall(f"{connect}\r\nSUB > 1\r\nPING\r\n".encode())
        with contextlib.suppress(ConnectionError):
            while part := line.recv(4096):
                said += part
                if b"PONG" in said:
                    break
    return said


# --- client ids -----------------------------------------------------------------------------------


def queued_for(ground: Ground, alice: Identity) -> bytes:
    """Have an order wait at the broker for alice, who is away."""
    topic = ground.topics.device("alice", "task")
    session = MqttSession(Endpoint.of(alice), [topic], lambda _: True)
    session.start()
    session.wait_connected(10)
    session.stop()
    order = ground.author.sign(topic, SAMPLES["order"]).payload
    with ground.untrusted_broker() as inject:
        inject(topic, order)
    return order


def back_again(ground: Ground, alice: Identity) -> tuple[Owner, MqttSession]:
    owner = Owner()
    topic = ground.topics.device("alice", "task")
    owner.session = MqttSession(Endpoint.of(alice), [topic], owner)
    owner.session.start()
    owner.session.wait_connected(10)
    return owner, owner.session


def test_a_guessed_client_id_takes_nothing(ground: Ground, alice: Identity) -> None:
    order = queued_for(ground, alice)
    secret = alice.client_id.removeprefix("alice-")
    guesses = [
        *("alice", "alice-", "alice-0", "alice-1", f"alice-{'0' * len(secret)}", "ALICE"),
        *("server", "operator", alice.password.get_secret_value()[:4], f"alice-{secret[:-1]}"),
        *(f"alice-{secret.upper()}-", f"alice-{secret}0", "$alice", "device-alice"),
    ]
    with ground.unharmed():
        for guess in guesses:
            for clean in (True, False):
                with (
                    contextlib.suppress(AssertionError),
                    ground.intruder("mallory", client_id=guess, clean=clean) as mallory,
                ):
                    mallory.subscribe(ground.topics.device("alice", "task"))
        owner, session = back_again(ground, alice)
        try:
            owner.wait(lambda: order in owner.payloads, 10)
            assert owner.connections[0].session_present
            with ground.intruder("mallory", client_id="alice"):
                pause()
            assert not owner.losses
        finally:
            session.stop()


def test_whoever_knows_a_secret_client_id_ends_its_session_and_reads_nothing(
    ground: Ground, alice: Identity
) -> None:
    """A limit of both brokers, which know a session by its client id alone.

    Its owner is thrown out, and what was queued is lost: with a clean session on NATS, with any on
    mosquitto. Nothing of it is read, and an agent asks again whenever it connects.
    """
    topics = ground.topics
    task, own = topics.device("alice", "task"), topics.device("mallory", "task")
    for clean, modern in ((False, False), (True, False), *([(False, True)] * _has_5(ground))):
        order = queued_for(ground, alice)
        taking = {"client_id": alice.client_id, "clean": clean, "modern": modern}
        with ground.unharmed():
            with ground.intruder("mallory", **taking) as thief:
                thief.subscribe(task, own)
                with ground.untrusted_broker() as inject:
                    inject(task, b"another order")
                    inject(own, b"own")
                eventually(lambda thief=thief: (own, b"own") in thief.heard)
                pause()
                assert {topic for topic, _ in thief.heard} == {own}
            owner, session = back_again(ground, alice)
            try:
                pause()
                kept = ground.kind.broker == "nats" and not clean
                assert (order in owner.payloads) is kept
                with ground.untrusted_broker() as inject:
                    inject(task, b"asked for again")
                owner.wait(lambda owner=owner: b"asked for again" in owner.payloads, 10)
                # and while she is there, she is thrown out and comes back by herself
                throw_out(ground, owner, taking)
                owner.wait(lambda owner=owner: len(owner.connections) > 1, 30)
            finally:
                session.stop()


def throw_out(ground: Ground, owner: Owner, taking: dict[str, Any]) -> None:
    """Take a session until its owner has lost it: NATS holds off who comes soon after another."""
    for _ in range(10):
        with contextlib.suppress(AssertionError), ground.intruder("mallory", **taking):
            owner.wait(lambda: bool(owner.losses), 3)
        if owner.losses:
            return
    raise AssertionError(f"never thrown out: {owner}")


def _has_5(ground: Ground) -> bool:
    return ground.kind.broker == "mosquitto"


# --- wills ----------------------------------------------------------------------------------------


def test_a_forged_will_reaches_nobody(ground: Ground, alice: Identity) -> None:
    topics, forger = ground.topics, ground.intruder("mallory")
    places = (
        *(topics.device("alice", "state"), topics.run("r", "state"), topics.server_state),
        *(topics.device("alice", "task"), topics.operator("operator", "request")),
    )
    before = ground.row("alice")
    own = topics.device("mallory", "state")
    last = forger.write(own, DeviceState(status="lost", boot_id="last"))
    wills = {(topic, forger.write(topic, sample(topic), "alice")) for topic in places}
    with ground.unharmed(), ground.counting(), ground.eyes("alice") as eyes:
        for will in wills:
            # refused with its will, which is as good
            with contextlib.suppress(AssertionError), ground.intruder("mallory", will=will):
                pass
        with ground.intruder("mallory", will=(own, last)):
            pass
        eyes.wait(last)
        pause()
        assert not eyes.payloads & {payload for _, payload in wills}
    assert ground.row("alice") == before


# --- what is acknowledged and dropped -------------------------------------------------------------


def test_an_outbox_forgets_nothing_that_the_broker_acknowledged_and_dropped(
    ground: Ground, alice: Identity, tmp_path_factory: pytest.TempPathFactory
) -> None:
    identity = ground.device("mallory")
    foreign, own = (ground.topics.device(name, "result") for name in ("alice", "mallory"))
    outbox = Outbox(tmp_path_factory.mktemp("outbox") / "outbox.sqlite")
    endpoint = replace(Endpoint.of(identity), client_id="outbox", persistent=False)
    session = MqttSession(endpoint, (), lambda _: True, outbox=outbox, resend_s=0.2)
    forger = ground.intruder("mallory")
    dropped, brought = (
        forger.write(topic, Result.model_validate(SAMPLES["result"].model_dump() | {"run_id": "q"}))
        for topic in (foreign, own)
    )
    session.start()
    try:
        session.wait_connected(10)
        with ground.unharmed(), ground.eyes() as eyes:
            session.publish_durably("dropped", foreign, dropped, until="confirm")
            session.publish_durably("brought", own, brought, until="confirm")
            # the second has come, again and again, so the first was sent as often
            eventually(lambda: eyes.on(own).count(brought) > 2)
            assert dropped not in eyes.payloads
            assert {row.key for row in outbox.pending()} == {"dropped", "brought"}
            assert session.confirm("brought")
            assert [row.key for row in outbox.pending()] == ["dropped"]
            session.confirm("dropped")
    finally:
        session.stop()
        outbox.close()
