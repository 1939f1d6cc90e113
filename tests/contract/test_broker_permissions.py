"""Every broker, with every MQTT version it speaks: who may do what, and users that change."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from broker.session.endpoint import Endpoint
from broker.session.publication import Publication
from broker.session.session import MqttSession
from broker.wire.access import BrokerUser, Grants, Role
from runtime.errors import AuthenticationFailed, ConfigError
from tests.contract.broker_clients import (
    RESULT_A,
    SERVER_STATE,
    STATE_A,
    STATE_B,
    WITHOUT_A,
    as_server,
    subscribe,
    watcher,
)
from tests.contract.broker_places import Place, kind, place
from tests.integration.broker_fixtures import (
    ANYONE,
    BASE,
    TASK_A,
    USERS,
    Owner,
    eventually,
    quiet_for,
    user,
)

__all__ = ["kind", "place"]


# --- permissions ---------------


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


def test_a_denied_subscription_brings_nothing(place: Place) -> None:
    owner = Owner()
    place.session(owner, TASK_A, endpoint=place.endpoint("dev-b"))
    as_server(place).publish(Publication(TASK_A, b"order"))
    quiet_for(0.3, owner)
    # mosquitto grants every subscription, and asks the rules at each delivery
    assert bool(owner.faults) == (place.kind.server == "nats")
