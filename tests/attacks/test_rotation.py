"""A password that changes in the worst moments: nothing is lost and nobody is locked out."""

from __future__ import annotations

import fcntl
from contextlib import ExitStack

from broker.session.endpoint import Endpoint
from broker.session.session import MqttSession
from broker.wire.messages import NewPassword
from runtime.errors import AuthenticationFailed
from runtime.security.identity import Identity, read_identity
from tests.attacks.ground import GATED_TASK, Ground, pause, secrets_of
from tests.integration.broker_fixtures import eventually


def admits(identity: Identity, password: str) -> bool:
    """Whether the broker takes a password; on another session than the device's own."""
    endpoint = Endpoint(
        *(identity.host, identity.port, identity.id, password, f"{identity.id}-probe"),
        persistent=False,
    )
    session = MqttSession(endpoint, (), lambda _: True)
    session.start()
    try:
        session.wait_connected(10)
    except AuthenticationFailed:
        return False
    finally:
        session.stop()
    return True


def test_a_rotation_loses_no_pending_result(ground: Ground) -> None:
    rita = ground.agent("rita")
    old = secrets_of(rita.identity)["password"]
    _, store, server = ground.pids
    ground.hold("rita")
    with ground.unharmed(), ExitStack() as stack:
        run_id = ground.submit(GATED_TASK, 1)
        ground.wait_held("rita")
        with ground.stopped(server):
            ground.release("rita")
            eventually(lambda: rita.stages == ["reporting"], 30)
            stack.enter_context(ground.stopped(store))
        # the server has the result, but cannot read the update: no receipt can come
        ground.call("devices_rotate", {"device_id": "rita"})
        eventually(lambda: secrets_of(rita.identity)["password"] != old, 30)
        eventually(lambda: "next_password" not in secrets_of(rita.identity))
        new = secrets_of(rita.identity)["password"]
        assert rita.stages == ["reporting"]
        stack.close()
        report = ground.finish(run_id)
        assert report["history"][0]["included"] == ["rita"]
        eventually(lambda: rita.stages == [])
    identity = read_identity(rita.identity)
    assert admits(identity, new)
    assert not admits(identity, old)
    assert ground.audit(act="password rotated", subject="rita")
    assert rita.child.running


def test_a_device_killed_between_its_disk_and_the_broker_comes_back(ground: Ground) -> None:
    rolf = ground.agent("rolf")
    old = secrets_of(rolf.identity)["password"]
    rolf.child.stop()
    ground.wait_status("rolf", "offline")
    ack, info = (ground.topics.device("rolf", leaf) for leaf in ("ack", "info"))
    with ground.unharmed():
        ground.call("devices_rotate", {"device_id": "rolf"})  # it waits at the broker
        with ground.eyes() as eyes, ground.stopped(ground.pids[2]):
            rolf.child.start()
            eventually(lambda: "next_password" in secrets_of(rolf.identity), 30)
            rolf.child.kill()
            kept = secrets_of(rolf.identity)
            assert kept["password"] == old
            new = kept["next_password"]
            said = len(eyes.on(info))
            # with the old one, which is all that the broker knows
            rolf.child.start()
            eventually(lambda: len(eyes.on(info)) > said, 30)
            # it says that it kept the new one, unless it had before it was killed
            eventually(lambda: bool(eyes.on(ack)), 30)
            rolf.child.kill()
            assert secrets_of(rolf.identity)["next_password"] == new
        identity = read_identity(rolf.identity)
        eventually(lambda: bool(ground.audit(act="password rotated", subject="rolf")))
        eventually(lambda: admits(identity, new))
        assert not admits(identity, old)
        # with the new one, after the old one was refused
        rolf.child.start()
        ground.wait_status("rolf", "ready")
        eventually(lambda: "next_password" not in secrets_of(rolf.identity))
        assert secrets_of(rolf.identity)["password"] == new
    assert rolf.child.running


def test_a_forged_password_is_not_kept(ground: Ground) -> None:
    rolf = ground.agent("rolf")
    topic = ground.topics.device("rolf", "task")
    before = secrets_of(rolf.identity)
    identity = read_identity(rolf.identity)
    sealed = identity.secret_key.public.seal(b"a-password-of-mallorys")
    message = NewPassword(rotation=7, sealed=sealed)
    with ground.unharmed(), ground.untrusted_broker() as inject:
        refused = rolf.refusals(topic, "signature")
        forger = ground.intruder("mallory")
        inject(topic, forger.write(topic, message, "server"))
        eventually(lambda: rolf.refusals(topic, "signature") == refused + 1)
        # the server's own word, sealed for somebody else
        other = ground.device("mallory").secret_key.public.seal(b"a-password-of-mallorys")
        wrong = NewPassword(rotation=7, sealed=other)
        inject(topic, ground.author.sign(topic, wrong).payload)
        eventually(lambda: rolf.refusals(topic, "sealed for another") == 1)
    assert secrets_of(rolf.identity) == before


def test_two_rotations_within_one_reload_lock_nobody_out(ground: Ground) -> None:
    """The broker takes the first password while the second is on its way to the device."""
    rita = ground.agent("rita")
    old = secrets_of(rita.identity)["password"]
    identity = read_identity(rita.identity)
    done = len(ground.audit(act="password rotated", subject="rita"))
    with ground.unharmed():
        # whoever changes the broker's users holds this lock, so that the reload waits
        with (ground.site.folder.root / "broker" / "users.lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            ground.call("devices_rotate", {"device_id": "rita"})
            eventually(lambda: len(ground.audit(act="password rotated", subject="rita")) > done, 30)
            with ground.stopped(rita.child.pid):
                ground.call("devices_rotate", {"device_id": "rita"})
                pause()  # the second one reaches the device before it is cut off, if it is sent
                fcntl.flock(lock, fcntl.LOCK_UN)
                eventually(lambda: not admits(identity, old), 30)
        eventually(
            lambda: len(ground.audit(act="password rotated", subject="rita")) == done + 2, 60
        )
        ground.wait_status("rita", "ready")
        eventually(lambda: "next_password" not in secrets_of(rita.identity))
        kept = secrets_of(rita.identity)
        assert kept["password"] != old
        assert "earlier_passwords" not in kept
        assert admits(identity, kept["password"])
    assert rita.child.running
