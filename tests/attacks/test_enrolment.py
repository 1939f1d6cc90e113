"""Attacks on the way in: with a join token, with none, with a bad one, and after a revocation."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from broker.session.endpoint import Endpoint
from broker.session.session import MqttSession
from broker.wire.messages import Claim, ClaimAnswer, DeviceState, decode
from broker.wire.topics import parse
from fl_client.identity.enrolment import enroll
from runtime.broker_url import parse_url
from runtime.errors import AuthenticationFailed, ConfigError, PeerError
from runtime.security.identity import Identity, new_identity, read_identity
from runtime.security.join_token import JoinToken
from runtime.security.signing import SecretKey
from tests.attacks.ground import Ground
from tests.attacks.intruders import LEAVES, Forger, Intruder, Trainer, pause, sample
from tests.integration.broker_fixtures import Owner, eventually
from tests.integration.commands import Told, rengo
from tests.messages import SAMPLES

CUT_OFF_WITHIN_S = 5.0


def invite(ground: Ground, *, uses: int = 1, lifetime_s: float = 600.0) -> JoinToken:
    made = ground.call("devices_invite", {"uses": uses, "lifetime_s": lifetime_s})
    return JoinToken.parse(made["token"])


def holder(ground: Ground, token: JoinToken) -> Intruder:
    """A client with what everybody who holds a token has."""
    at = ground.site.at
    identity = new_identity("device", at.domain, token.id, at.host, at.port, key=token.key)
    password = SecretStr(token.broker_password)
    return Intruder(ground.kind, identity.model_copy(update={"password": password}))


def claimed(ground: Ground, token: JoinToken, folder: Path, name: str = "") -> Identity:
    """Enrol as a device does, in this process."""
    return read_identity(enroll(parse_url(ground.site.public_url), token, folder, name).path)


def answers(ground: Ground, heard: list[tuple[str, bytes]]) -> list[ClaimAnswer]:
    found = [
        decode(payload, parse(topic), ground.server.secret_key.public)[1]
        for topic, payload in heard
        if topic.endswith("/result") and "/enroll/" in topic
    ]
    return [each for each in found if isinstance(each, ClaimAnswer)]


# --- a token's holder ---------------


def test_a_tokens_holder_has_its_topic_alone(ground: Ground) -> None:
    token, other = invite(ground), invite(ground)
    topics = ground.topics
    places = [
        *(topics.device("alice", leaf) for leaf in (*LEAVES, "task", "receipt")),
        *(topics.device(token.id, leaf) for leaf in LEAVES),
        *(topics.server_state, topics.run("r", "state"), topics.run("r", "events")),
        *(topics.operator("operator", "request"), topics.operator("operator", "reply")),
        *(topics.enroll(other.id), topics.enroll(other.id, "result")),
        topics.enroll(token.id, "result"),
    ]
    ground.device("alice")
    before = ground.row("alice")
    with ground.unharmed(), ground.counting(wrong_place=1), ground.eyes("alice") as eyes:
        with holder(ground, token) as eve, holder(ground, other) as watching:
            watching.subscribe(topics.enroll(other.id, "result"))
            forged = {eve.write(place, sample(place), token.id) for place in places}
            eve.subscribe("#", "rengo/#", topics.enroll("+"), topics.enroll("+", "result"))
            eve.subscribe(
                topics.server_state, topics.device("+", "state"), topics.run("+", "state")
            )
            for place, payload in zip(places, forged, strict=True):
                eve.publish(place, payload, retain=True)
            own = topics.enroll(token.id)
            last = eve.write(own, Claim(public_key="00" * 32, name=""))
            # well signed and of another kind: the one place where it may write takes claims alone
            eve.publish(own, eve.sign(own, _as_another_kind(last)))
            eyes.wait(eve.sign(own, _as_another_kind(last)))
            pause()
            assert eve.heard == []
            assert watching.heard == []
        assert not eyes.payloads & forged
    assert ground.row("alice") == before


def _as_another_kind(payload: bytes) -> bytes:
    return payload[64:].replace(b"\xa5claim", b"\xa7decline")


def test_holders_of_one_token_cannot_read_each_others_answers(
    ground: Ground, tmp_path: Path
) -> None:
    token = invite(ground, uses=2)
    topics = ground.topics
    with ground.unharmed(), holder(ground, token) as eve:
        eve.subscribe(topics.enroll(token.id, "result"), topics.enroll(token.id))
        honest = claimed(ground, token, tmp_path)
        eventually(lambda: len(answers(ground, eve.heard)) == 1)
        (answer,) = answers(ground, eve.heard)
        assert answer.admitted
        assert answer.public_key == honest.secret_key.public.text
        secret = honest.password.get_secret_value().encode()
        assert secret not in b"".join(payload for _, payload in eve.heard)
        for key in (SecretKey.generate(), token.key):
            with pytest.raises(PeerError):
                key.unseal(answer.sealed)
        assert secret in honest.secret_key.unseal(answer.sealed)

        # nor does it help to claim for the other's key: the answer is sealed for that again
        claim = topics.enroll(token.id)
        eve.publish(claim, eve.write(claim, Claim(public_key=answer.public_key, name="stolen")))
        eventually(lambda: len(answers(ground, eve.heard)) == 2)
        again = answers(ground, eve.heard)[1]
        assert again.admitted
        assert again.sealed != answer.sealed
        with pytest.raises(PeerError):
            token.key.unseal(again.sealed)
    second = claimed(ground, token, tmp_path)
    assert second.id != honest.id, "the stolen claim used nothing up"
    rows = {each["id"] for each in ground.call("devices_ls")["devices"]}
    assert {honest.id, second.id} <= rows
    assert "stolen" not in rows


def test_an_answer_that_the_server_did_not_give_is_not_believed(
    ground: Ground, tmp_path: Path
) -> None:
    token = invite(ground)
    place = ground.topics.enroll(token.id, "result")
    with (
        ground.untrusted_broker() as inject,
        ThreadPoolExecutor(1) as pool,
        ground.stopped(ground.pids[2]),
    ):
        asking = pool.submit(claimed, ground, token, tmp_path)
        claim_file = tmp_path / f"{token.id}.claim"
        eventually(claim_file.exists)
        key = SecretKey(json.loads(claim_file.read_text())["key"])
        answer = ClaimAnswer(public_key=key.public.text, admitted=True, sealed=bytes(64))
        forged = Forger("server", SecretKey.generate()).write(place, answer)

        def refused() -> bool:
            inject(place, forged)
            return asking.done()

        eventually(refused, 20)
    with pytest.raises(AuthenticationFailed, match="not from the server that this token names"):
        asking.result()
    assert not list(tmp_path.glob("*.json"))


# --- bad tokens ---------------


def test_each_bad_token_is_told_by_a_line_of_its_own(ground: Ground, tmp_path: Path) -> None:
    expired, withdrawn, used = invite(ground, lifetime_s=1.0), invite(ground), invite(ground)
    ground.call("devices_revoke", {"device_id": withdrawn.id})
    claimed(ground, used, tmp_path)
    text = used.text
    mistyped = text[:20] + ("A" if text[20] != "A" else "B") + text[21:]
    foreign = JoinToken.generate(ground.site.record.domain, SecretKey.generate().public)
    good = invite(ground, uses=3)
    until = time.time() + 1.0

    def enrolling(number: int, token: str, *more: str) -> Told:
        home = tmp_path / str(number)
        url = ground.site.public_url
        return rengo("enroll", url, "--token", token, "--only", *more, home=home)

    tries = {
        "expired": (expired.text,),
        "withdrawn": (withdrawn.text,),
        "used": (used.text,),
        "mistyped": (mistyped,),
        "foreign": (foreign.text,),
        "server": (good.text, "--name", "server"),
        "operator": (good.text, "--name", "operator"),
        "token": (good.text, "--name", good.id),
        "taken": (good.text, "--name", ground.device("alice").id),
    }
    eventually(lambda: time.time() > until)
    with ground.unharmed(), ThreadPoolExecutor(2) as pool:
        coming = {
            name: pool.submit(enrolling, number, *words)
            for number, (name, words) in enumerate(tries.items())
        }
        told = {name: each.result() for name, each in coming.items()}
    lines = {name: each.line for name, each in told.items()}
    parts = {
        "expired": "the token has expired",
        "withdrawn": "the token was withdrawn",
        "used": "the token is used up",
        "mistyped": "this is not a join token, or it was mistyped",
        "foreign": "does not know this token: it is another site's",
        "server": "the name server is reserved",
        "operator": "the name operator is reserved",
        "token": f"the name {good.id} is reserved",
        "taken": "the name alice is taken",
    }
    assert {name: part for name, part in parts.items() if part not in lines[name]} == {}, lines
    assert {name: each.code for name, each in told.items()} == dict.fromkeys(parts, 2) | {
        "foreign": 4
    }
    assert all(token.text not in str(told) for token in (expired, withdrawn, used, foreign, good))

    root = ground.site.folder.root
    log = json.loads(rengo("audit", "--last", "200", "--json", "-", "--data-dir", root).out)
    refused = {
        (each["actor"], each["detail"]["reason"])
        for each in log["entries"]
        if each["act"] == "claim refused"
    }
    seen = {"expired": expired, "withdrawn": withdrawn, "used": used}
    seen |= dict.fromkeys(("server", "operator", "token", "taken"), good)
    for name, token in seen.items():
        assert any(actor == token.id and parts[name] in reason for actor, reason in refused), name
    # the broker did not let this one in; mosquitto does not say whom it refused
    who = foreign.id if ground.kind.broker == "nats" else ""
    eventually(lambda: bool(ground.audit(act="connection refused", actor=who)), 20.0)


def test_a_reserved_name_is_not_admitted_by_hand_either(ground: Ground) -> None:
    for name in ("server", "operator"):
        at = ground.site.at
        with pytest.raises(ConfigError, match=f"the name {name} is reserved"):
            ground.site.admit([new_identity("device", at.domain, name, at.host, at.port)])


def test_a_flood_of_claims_is_answered_for_a_while_only(ground: Ground) -> None:
    token = invite(ground)
    claim, result = ground.topics.enroll(token.id), ground.topics.enroll(token.id, "result")
    known = len(ground.call("devices_ls")["devices"])
    before = ground.refused
    with ground.unharmed(), holder(ground, token) as eve:
        eve.subscribe(result)
        flood = [
            eve.write(claim, Claim(public_key=SecretKey.generate().public.text, name=""))
            for _ in range(600)
        ]
        eve.send_raw(b"".join(eve.packet(claim, each, n) for n, each in enumerate(flood, 1)))

        def done() -> bool:
            limited = (ground.refused - before)["rate_limited"]
            return limited > 0 and limited + len(eve.heard) >= len(flood)

        eventually(done, 30)
        admitted = [each for each in answers(ground, eve.heard) if each.admitted]
        assert len({each.public_key for each in admitted}) == 1, "as often as the token says"
    assert len(ground.call("devices_ls")["devices"]) == known + 1


# --- revocation ---------------


def test_a_revoked_device_is_cut_off_and_nothing_of_it_is_left(
    ground: Ground, tmp_path: Path
) -> None:
    topics, rex = ground.topics, ground.device("rex")
    task = topics.device("rex", "task")
    own = MqttSession(Endpoint.of(rex), [task], lambda _: True)
    own.start()
    own.wait_connected(10)
    own.stop()
    with (
        ground.unharmed(),
        ground.untrusted_broker() as inject,
        Trainer(ground.kind, rex) as online,
    ):
        inject(task, ground.author.sign(task, SAMPLES["order"]).payload)
        online.say("info", SAMPLES["device_info"], retain=True)
        ground.wait_status("rex", "ready")
        with ThreadPoolExecutor(1) as pool:
            revoking = pool.submit(ground.call, "devices_revoke", {"device_id": "rex"})
            eventually(lambda: not online.connected, CUT_OFF_WITHIN_S)
            assert revoking.result() == {"revoked": "rex"}
        online.heard.clear()
        inject(task, b"after")
        again = MqttSession(Endpoint.of(rex), [task], lambda _: True)
        again.start()
        with pytest.raises(AuthenticationFailed):
            again.wait_connected(10)
        again.stop()
        assert online.heard == []

        # whatever a broker brings of it is refused, and does not stay
        state = topics.device("rex", "state")
        payload = online.write(state, DeviceState(status="ready", boot_id="b", tasks=["digits"]))
        with ground.counting(revoked_device=1):
            inject(state, payload, retain=True)
        with ground.eyes("alice") as late:
            pause()
            left = {each.topic for each in late.deliveries if "/rex/" in each.topic}
            assert left == set()
        assert ground.row("rex")["status"] == "revoked"

    _nothing_waits_for_another_with_its_client_id(ground, rex, task)
    _its_key_is_not_taken_again(ground, rex, tmp_path)
    assert ground.audit(act="device revoked", subject="rex")
    assert ground.audit(act="device cut off", subject="rex")


def _nothing_waits_for_another_with_its_client_id(ground: Ground, rex: Identity, task: str) -> None:
    at = ground.site.at
    heir = new_identity("device", at.domain, "rex-again", at.host, at.port)
    heir = heir.model_copy(update={"client_id": rex.client_id})
    ground.site.admit([heir])
    owner = Owner()
    owner.session = MqttSession(
        Endpoint.of(heir), [task, ground.topics.device("rex-again", "task")], owner
    )
    owner.session.start()
    try:
        owner.session.wait_connected(10)
        pause()
        assert owner.connections[0].session_present is False
        assert owner.deliveries == []
    finally:
        owner.session.stop()


def _its_key_is_not_taken_again(ground: Ground, rex: Identity, folder: Path) -> None:
    assert _admit_again(ground, rex) == {"revoked": ["rex"]}
    token = invite(ground)
    claim_file = folder / f"{token.id}.claim"
    claim_file.write_text(json.dumps({"key": rex.secret_key.text}))
    with pytest.raises(ConfigError, match="device rex was revoked; it needs a new identity"):
        claimed(ground, token, folder, "rex-reborn")
    fresh = rex.model_copy(update={"id": "rex-reborn", "client_id": "rex-reborn-1"})
    with pytest.raises(ConfigError, match="the key of rex-reborn is another device's"):
        _admit_again(ground, fresh)
    assert not claim_file.exists(), "a refused key is not kept"
    with pytest.raises(ConfigError, match="the name rex is taken"):
        claimed(ground, token, folder, "rex")


def _admit_again(ground: Ground, identity: Identity) -> dict[str, Any]:
    row = {
        "id": identity.id,
        "public_key": identity.secret_key.public.text,
        "client_id": identity.client_id,
        "password": identity.password.get_secret_value(),
    }
    return ground.call("devices_admit", {"devices": [row]})
