"""Whole documents at their bounds and beyond, well signed, through a real server that starts again.

Devices, operators and holders of join tokens say them, in turns: the server hears so much of each
a second. What it has written by them must not end the next one either.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from broker.session.publication import Publication
from broker.wire.messages import (
    KINDS,
    MAX_MESSAGE_BYTES,
    Claim,
    ClaimAnswer,
    DeviceState,
    Message,
    OperatorRequest,
)
from broker.wire.topics import parse
from fl_server.operations.catalogue import OPERATIONS
from rengo.operator.client import OperatorClient
from runtime.security.identity import new_identity
from runtime.security.join_token import JoinToken
from runtime.security.signing import SIGNATURE_BYTES, SecretKey
from tests.bounds import SIZES, documents, found_by
from tests.integration.broker_fixtures import eventually
from tests.integration.server.site import DOMAIN, SERVER, TOPICS, Place, Site, key_of, said
from tests.messages import signed
from tests.operations import OpenAccess

CROWD = 100
# how much is on its way to the server at once
AT_ONCE, BYTES_AT_ONCE = 200, 2 << 20
PATIENCE_S = 120.0
FROM_THE_SERVER = frozenset({"task", "receipt", "reply"})
FROM_PEERS = [
    each
    for each in KINDS.values()
    if each.channel[0] in {"dev", "op", "enroll"}
    and each.channel[1] not in FROM_THE_SERVER
    and each is not ClaimAnswer
]
NAMES = [f"crowd-{number}" for number in range(CROWD)]
STAFF = [f"staff-{number}" for number in range(CROWD)]


@pytest.fixture
def site(place: Place, tmp_path: Path) -> Iterator[Site]:
    operators = [
        new_identity("operator", DOMAIN, name, "127.0.0.1", 1, key=key_of(name), server_key=SERVER)
        for name in STAFF
    ]
    made = Site(place, tmp_path, access=OpenAccess(), more_operators=operators)
    made.start()
    try:
        made.admit(*NAMES)
        yield made
    finally:
        made.close()


def requests() -> SearchStrategy[dict[str, Any]]:
    """Return requests of operators, most of them for an operation that there is."""
    named = st.sampled_from(sorted(OPERATIONS)).flatmap(
        lambda name: st.fixed_dictionaries(
            {
                "request_id": st.uuids().map(str),
                "operation": st.just(name),
                "arguments": documents(OPERATIONS[name].arguments),
            }
        )
    )
    return st.one_of(named, named, named, documents(OperatorRequest))


def spoken(site: Site, kind: type[Message]) -> Iterator[tuple[str, str, SecretKey]]:
    """Yield, for ever, who says a message of a kind, where, and by which key."""
    area, leaf = kind.channel
    if kind is Claim:
        tokens = [JoinToken.parse(site.call("devices_invite", uses=10_000)["token"]) for _ in NAMES]
        yield from itertools.cycle((each.id, TOPICS.enroll(each.id), each.key) for each in tokens)
    topic_of, names = (TOPICS.operator, STAFF) if area == "op" else (TOPICS.device, NAMES)
    yield from itertools.cycle((name, topic_of(name, leaf), key_of(name)) for name in names)


def about(run_id: str, body: dict[str, Any]) -> dict[str, Any]:
    """Return what a device says, about a run that there is."""
    named = {"run_id": run_id, "phase": "", "seq": 0, "round": 1, "attempt": 1}
    return {**body, **{name: each for name, each in named.items() if name in body}}


def say_all(site: Site, kind: type[Message], bodies: list[dict[str, Any]], run_id: str) -> None:
    session, _ = site.peer()
    speakers, waiting = spoken(site, kind), list[int]()
    for number, body in enumerate(bodies):
        sender, topic, key = next(speakers)
        head = {"v": 1, "kind": kind.kind, "sender": sender, "boot_id": "bounds", "seq": number}
        told = body if number % 3 else about(run_id, body)
        data = msgpack.packb({**head, "sent_ms": number, "ttl_s": None, "body": told})
        if len(data) <= MAX_MESSAGE_BYTES - SIGNATURE_BYTES:
            session.publish(Publication(topic, signed(data, parse(topic), key)))
            waiting.append(len(data))
        if len(waiting) >= AT_ONCE or sum(waiting) >= BYTES_AT_ONCE:
            assert session.flush(PATIENCE_S)
            wait_until_handled(site)
            waiting.clear()
    assert session.flush(PATIENCE_S)
    wait_until_handled(site)


def wait_until_handled(site: Site) -> None:
    """Return when the server has handled what came before: it answers in order."""
    with OperatorClient(site.place.operator) as client:
        client.call("server_info", {}, timeout_s=PATIENCE_S)


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("kind", FROM_PEERS, ids=lambda kind: kind.kind)
def test_no_document_ends_the_server_or_the_next_one(
    site: Site, kind: type[Message], count: int
) -> None:
    session, _ = site.peer()
    ready = DeviceState(status="ready", boot_id="a-b", tasks=["digits"])
    run_id = site.submit(
        definition={"task": "digits", "rounds": 2, "cohort": {"size": CROWD, "deadline_s": 3000}}
    )
    for name in NAMES:
        topic = TOPICS.device(name, "state")
        session.publish(Publication(topic, said(topic, ready, name)))
    eventually(lambda: site.call("runs_show", run_id=run_id)["phase"] == "collecting")
    bodies = found_by(requests() if kind is OperatorRequest else documents(kind), count)
    say_all(site, kind, bodies, run_id)
    refused = site.refused()
    assert not site.fell
    assert not site.server.faults.counted
    assert not {"rate_limited", "internal_error", "signature"} & refused.keys(), refused
    # what is wrong with an operation's arguments, an operator is told in the answer
    assert kind is OperatorRequest or 0 < refused["body"] < count, refused
    site.restart()
    for operation in ("devices_ls", "runs_ls", "models_ls", "audit_ls", "audit_verify"):
        site.call(operation)
    assert site.call("runs_show", run_id=run_id)["status"] in {"running", "waiting"}
