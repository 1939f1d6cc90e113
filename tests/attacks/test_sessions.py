"""What a device leaves at the broker: nothing beside its own session, and nothing once revoked."""

from __future__ import annotations

import shutil

import pytest

from broker.brokers.managed_users import ManagedUsers
from broker.brokers.mosquitto import MosquittoAccess
from broker.brokers.nats import NatsAccess
from rengo.site.device_process import DeviceSpec, device_process
from tests.attacks.ground import GATED_TASK, LEAVES, Eyes, Ground, pause
from tests.integration.broker_fixtures import eventually

MANY = [5, pytest.param(300, marks=pytest.mark.soak)]


def broker_of(ground: Ground) -> ManagedUsers:
    kinds = {"nats": NatsAccess, "mosquitto": MosquittoAccess}
    return kinds[ground.kind.broker](ground.site.folder.root / "broker")


@pytest.mark.parametrize("count", MANY)
def test_a_revoked_device_leaves_no_session_and_no_retained_message(
    ground: Ground, count: int
) -> None:
    name = f"squatter-{count}"
    broker, topics = broker_of(ground), ground.topics
    own, task = ground.device(name).client_id, topics.device(name, "task")
    with ground.unharmed():
        for client_id in [own, *(f"{name}-{number}" for number in range(count))]:
            with ground.intruder(name, client_id=client_id, clean=False, modern=False) as squatter:
                squatter.subscribe(task, topics.run("+", "state"))
                for leaf in LEAVES:
                    squatter.publish(topics.device(name, leaf), b"left behind", retain=True)

        def left() -> set[str]:
            return {each for each in broker.lasting_sessions() if each.startswith(name)}

        # those beyond its own are ended within a minute; that one of them is there is enough here
        assert own in left()
        ground.call("devices_revoke", {"device_id": name})
        eventually(lambda: not left(), 60)
        everything = [topics.device(name, leaf) for leaf in LEAVES]
        with Eyes((ground.server, everything)) as eyes:
            pause()
            assert not [each for each in eyes.deliveries if each.payload]
    assert ground.audit(act="sessions ended")


def test_two_machines_with_one_identity_are_told_and_so_is_the_server(ground: Ground) -> None:
    """A card that was copied: each agent throws the other out, whenever it connects."""
    first = ground.agent("copied")
    root = ground.site.folder.root
    identity = root / "copied-elsewhere.json"
    shutil.copy(first.identity, identity)
    folder, log = root / "devices" / "copied-elsewhere", root / "copied-elsewhere.log"
    second = device_process(DeviceSpec("copied", engine="numpy"), identity, folder, GATED_TASK, log)
    told = "another process uses this device's identity at the same time"
    server_log = ground.site.children["server"].log
    with ground.unharmed():
        second.start()
        try:
            eventually(lambda: told in first.log, 60)
            eventually(lambda: told in log.read_text(), 60)
            said = "two processes use the identity of device copied"
            eventually(lambda: said in server_log.read_text("utf-8", "replace"))
        finally:
            second.stop()
        assert server_log.read_text("utf-8", "replace").count(said) == 1
    assert ground.audit(act="identity used twice")
