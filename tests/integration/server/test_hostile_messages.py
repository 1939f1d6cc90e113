"""A server on a real broker and store: messages that are false, damaged or too many."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from broker.session.publication import Publication
from broker.wire.messages import MAX_MESSAGE_BYTES, DeviceState, Receipt
from runtime.security.signing import SIGNATURE_BYTES
from tests.integration.broker_fixtures import eventually
from tests.integration.server.site import TOPICS, Site, received, result, said
from tests.messages import SAMPLES, content, envelope

DECLINE = SAMPLES["decline"]


def body(**changes: Any) -> bytes:
    packed: bytes = msgpack.packb(envelope(DECLINE, body={**DECLINE.model_dump(), **changes}))
    return packed


def bent(**changes: Any) -> bytes:
    packed: bytes = msgpack.packb(envelope(DECLINE, **changes))
    return packed


HOSTILE: list[tuple[str, bytes, str]] = [
    ("ack", b"\xc1", "not_msgpack"),
    ("ack", b"", ""),
    ("ack", b"\x91" * 5000 + b"\xc0", "not_msgpack"),
    ("ack", b"{}", "not_msgpack"),
    ("ack", b"\xc0", "envelope"),
    ("ack", bent(v=2), "schema_version"),
    ("ack", bent(kind="os.system"), "unknown_kind"),
    ("ack", bent(sender="d-2"), "wrong_sender"),
    ("ack", bent(sender="../x"), "envelope"),
    ("ack", body(more=1), "body"),
    ("ack", body(round=-1), "body"),
    ("ack", body(reason=1), "body"),
    ("ack", content(DECLINE), "unknown_run"),
    ("request", content(SAMPLES["request"]), "unknown_run"),
    ("result", content(DECLINE), "wrong_place"),
    ("state", content(SAMPLES["server_state"]), "wrong_place"),
    ("result", bytes(MAX_MESSAGE_BYTES - SIGNATURE_BYTES), "not_msgpack"),
]


def test_hostile_messages_are_refused_and_counted_by_reason(site: Site) -> None:
    site.admit("d-1")
    session, _ = site.peer()
    for leaf, payload, _ in HOSTILE:
        topic = TOPICS.device("d-1", leaf)
        session.publish(Publication(topic, said(topic, payload) if payload else b""))
    expected: dict[str, int] = {}
    for _, _, reason in HOSTILE:
        if reason:
            expected[reason] = expected.get(reason, 0) + 1
    eventually(lambda: site.refused() == expected)
    assert site.submit(), "the server goes on"


def test_what_was_not_signed_by_its_sender_is_refused_and_counted(site: Site) -> None:
    site.admit("d-1", "d-2")
    session, _ = site.peer()
    topic, sent = TOPICS.device("d-1", "result"), result("r")
    good = said(topic, sent)
    for payload in (
        bytes(SIGNATURE_BYTES) + content(sent, "d-1"),
        content(sent, "d-1"),
        b"short",
        said(topic, sent, key="d-2"),
        said(TOPICS.device("d-2", "result"), sent),
        said(TOPICS.device("d-1", "ack"), sent),
        said("rengo/v1/away/dev/d-1/result", sent),
        good[:-1] + bytes([good[-1] ^ 1]),
    ):
        session.publish(Publication(topic, payload))
    eventually(lambda: site.refused() == {"signature": 8})
    noted = [row for row in site.call("audit_ls")["entries"] if row["act"] == "message refused"]
    assert {(row["actor"], row["detail"]["reason"]) for row in noted} == {("d-1", "signature")}


def test_nobody_unknown_is_heard_and_what_he_retained_goes(site: Site) -> None:
    site.admit("d-1")
    session, owner = site.peer("anyone", TOPICS.device("+", "state"))
    state = DeviceState(status="ready", boot_id="b", tasks=["digits"])
    for name, key in (("d-9", "d-9"), ("d-1", "d-9")):
        topic = TOPICS.device(name, "state")
        session.publish(Publication(topic, said(topic, state, name, key), retain=True))
    asked = said(TOPICS.operator("nobody", "request"), SAMPLES["operator_request"], "nobody")
    session.publish(Publication(TOPICS.operator("nobody", "request"), asked))
    claimed = said(TOPICS.enroll("join-0"), SAMPLES["claim"], "join-0")
    session.publish(Publication(TOPICS.enroll("join-0"), claimed))
    expected = {"unknown_dev": 1, "signature": 1, "unknown_op": 1, "unknown_enroll": 1}
    eventually(lambda: site.refused() == expected)
    owner.wait(lambda: sum(not each.payload for each in owner.deliveries) == 2)
    session.flush(5)
    _, late = site.peer("anyone", TOPICS.device("+", "state"), TOPICS.server_state)
    late.wait(lambda: any("server" in each.topic for each in late.deliveries))
    assert not [each for each in late.deliveries if "/dev/" in each.topic]
    assert site.statuses() == {"d-1": "enrolled"}


def test_a_flood_of_one_device_is_not_heard_and_another_is(site: Site) -> None:
    site.admit("d-1", "d-2")
    flood, _ = site.peer()
    quiet, owner = site.peer("anyone", TOPICS.device("d-2", "receipt"))
    topic, other = TOPICS.device("d-1", "ack"), TOPICS.device("d-2", "result")
    noise = said(topic, DECLINE)
    for number in range(3000):
        flood.publish(Publication(topic, noise))
        if number == 1500:
            quiet.publish(Publication(other, said(other, result("no-such-run"), "d-2")))
    owner.wait(lambda: bool(received(owner, Receipt)))
    # a broker that waits long for an acknowledgement brings the message again
    eventually(lambda: sum(site.refused().values()) >= 3000, 30.0)
    refused = site.refused()
    assert refused.keys() == {"unknown_run", "rate_limited"}
    assert refused["unknown_run"] >= 500, "up to the bound it is heard"


def test_the_same_result_again_is_counted_and_answered(site: Site) -> None:
    site.admit("d-1")
    session, owner = site.peer("anyone", TOPICS.device("d-1", "receipt"))
    topic = TOPICS.device("d-1", "result")
    for _ in range(3):
        session.publish(Publication(topic, said(topic, result("no-such-run"))))
    owner.wait(lambda: len(received(owner, Receipt)) == 3)
    eventually(lambda: site.refused() == {"repeated": 2})


def test_a_flood_of_different_refusals_does_not_grow_the_count(site: Site) -> None:
    site.admit("d-1")
    session, _ = site.peer()
    topic = TOPICS.device("d-1", "ack")
    for number in range(200):
        session.publish(Publication(topic, said(topic, bent(kind=f"kind-{number}"))))
        session.publish(Publication(topic, said(topic, body(**{f"key-{number}": 1}))))
    eventually(lambda: site.refused() == {"unknown_kind": 200, "body": 200})


def test_a_device_cannot_speak_on_anothers_topic(site: Site) -> None:
    site.admit("d-1", "d-2")
    session, _ = site.peer("d-1")
    state = DeviceState(status="ready", boot_id="b", tasks=["digits"])
    for name in ("d-2", "d-1"):
        topic = TOPICS.device(name, "state")
        session.publish(Publication(topic, said(topic, state, name), retain=True))
    eventually(lambda: site.statuses() == {"d-1": "ready", "d-2": "enrolled"})
    assert site.refused() == {}, "the broker itself lets nothing of it pass"


def test_a_device_that_takes_anothers_name_on_its_own_topic(site: Site) -> None:
    site.admit("d-1", "d-2")
    session, _ = site.peer("d-1")
    state, topic = SAMPLES["device_state"], TOPICS.device("d-1", "state")
    session.publish(Publication(topic, said(topic, state, "d-2", key="d-1"), retain=True))
    eventually(lambda: site.refused() == {"wrong_sender": 1})
    assert site.statuses() == {"d-1": "enrolled", "d-2": "enrolled"}


@pytest.mark.parametrize("action", ["train", "evaluate"])
def test_a_result_of_an_unknown_run_gets_its_last_word(action: str, site: Site) -> None:
    session, owner = site.peer("anyone", TOPICS.device("d-1", "receipt"))
    site.admit("d-1")
    topic = TOPICS.device("d-1", "result")
    session.publish(Publication(topic, said(topic, result("no-such-run", action=action))))
    owner.wait(lambda: bool(received(owner, Receipt)))
    (receipt,) = received(owner, Receipt)
    assert (receipt.status, receipt.run_id, receipt.round) == ("unknown", "no-such-run", 1)
    assert receipt.action == action


def test_a_reply_survives_a_device_that_speaks_another_protocol(site: Site) -> None:
    """What one device retains must not take the command line from the operator."""
    session, _ = site.peer()
    for leaf, payload in (("state", bent(v=9)), ("info", b"\xc1")):
        session.publish(Publication(TOPICS.device("d-9", leaf), payload, retain=True))
    session.flush(5)
    assert site.call("runs_ls") == {"runs": []}
