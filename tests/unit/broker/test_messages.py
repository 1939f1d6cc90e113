"""Messages on the wire: whole round trips, and every way to be refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import pytest

from broker.wire.messages import (
    KINDS,
    MAX_EXCHANGE_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_NESTING,
    Decline,
    DeviceState,
    Message,
    OperatorReply,
    OperatorRequest,
    Order,
    Result,
    RunEvent,
    decode,
    encode,
)
from broker.wire.topics import Address
from runtime.errors import PeerError, RengoError
from runtime.security.signing import SecretKey
from tests.messages import (
    DOMAIN_INFO,
    EXCHANGE,
    EXCHANGED,
    KEY,
    SAMPLES,
    SHA,
    address_of,
    content,
    envelope,
    signed,
    wire,
)

DECLINE = SAMPLES["decline"]
AT = address_of(DECLINE)
# every kind and all that nests in one, full and sparse, as 4bf2752 encoded them for KEY's holder
RECORDED = json.loads(
    (Path(__file__).parents[2] / "old_data" / "messages_4bf2752.json").read_text()
)


def refused(payload: bytes, address: Address = AT) -> PeerError:
    """Return why a message is refused although its sender signed it."""
    with pytest.raises(PeerError) as caught:
        decode(signed(payload, address), address, KEY.public)
    return caught.value


def packed(**changes: Any) -> bytes:
    wire: bytes = msgpack.packb(envelope(DECLINE, **changes))
    return wire


def test_every_kind_has_a_sample() -> None:
    assert SAMPLES.keys() == KINDS.keys()


@pytest.mark.parametrize("message", SAMPLES.values(), ids=SAMPLES.keys())
def test_every_kind_comes_back_equal(message: Message) -> None:
    found, body = decode(wire(message), address_of(message), KEY.public)
    assert body == message
    assert type(body) is type(message)
    assert (found.sender, found.boot_id, found.seq, found.kind) == ("d-1", "boot", 7, message.kind)


# which the release of the recorded messages did not know
LATER_KINDS = {"tree_position", "identity_notice"}


def test_the_recorded_messages_are_of_every_kind() -> None:
    assert {kind for kind, _ in RECORDED} == KINDS.keys() - LATER_KINDS


@pytest.mark.parametrize(("kind", "recorded"), RECORDED)
def test_the_bytes_on_the_wire_are_those_of_earlier_versions(kind: str, recorded: str) -> None:
    address, payload = address_of(SAMPLES[kind]), bytes.fromhex(recorded)
    found, body = decode(payload, address, KEY.public)
    again = encode(
        body,
        address,
        KEY,
        sender=found.sender,
        boot_id=found.boot_id,
        seq=found.seq,
        sent_ms=found.sent_ms,
    )
    assert again == payload


@pytest.mark.parametrize("message", SAMPLES.values(), ids=SAMPLES.keys())
def test_no_kind_is_taken_in_the_place_of_another(message: Message) -> None:
    for other in SAMPLES.values():
        if other.channel != message.channel:
            assert refused(content(message), address_of(other)).reason == "wrong_place"


def test_the_sender_must_own_the_topic() -> None:
    owned = {
        "device_state",
        "device_info",
        "health",
        "data_report",
        "decline",
        "progress",
        "result",
        "request",
    }
    for kind, message in SAMPLES.items():
        payload, address = content(message, sender="someone-else"), address_of(message)
        if kind in owned | {"operator_request", "password_kept", "claim", "model_request"}:
            assert refused(payload, address).reason == "wrong_sender"
        else:
            decode(signed(payload, address), address, KEY.public)


@pytest.mark.parametrize("message", SAMPLES.values(), ids=SAMPLES.keys())
def test_nobody_else_can_sign_alter_or_move_a_message(message: Message) -> None:
    address, whole = address_of(message), wire(message)
    elsewhere = address_of(message, "d-2") if address.id else replace(address, domain="away")
    altered = [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(len(whole))]
    forged = wire(message, key=SecretKey("0f" * 32))
    for payload, place in [(forged, address), (whole, elsewhere), (b"", address)] + [
        (each, address) for each in altered
    ]:
        with pytest.raises(PeerError) as caught:
            decode(payload, place, KEY.public)
        assert caught.value.reason == "signature"


def test_another_schema_version_is_named() -> None:
    error = refused(packed(v=2))
    assert error.reason == "schema_version"
    assert "schema version 2" in str(error)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kind": "nonsense"}, "unknown_kind"),
        ({"kind": "model_ref"}, "unknown_kind"),
        ({"kind": "broker.wire.messages.Decline"}, "unknown_kind"),
        ({"kind": "x" * 65}, "envelope"),
        ({"v": True}, "envelope"),
        ({"v": "1"}, "envelope"),
        ({"sender": "UPPER"}, "envelope"),
        ({"sender": "d-1\n"}, "envelope"),
        ({"sender": "a/b"}, "envelope"),
        ({"boot_id": ""}, "envelope"),
        ({"seq": -1}, "envelope"),
        ({"seq": 1.0}, "envelope"),
        ({"sent_ms": 1 << 63}, "envelope"),
        ({"ttl_s": float("nan")}, "envelope"),
        ({"more": 1}, "envelope"),
        ({"body": []}, "envelope"),
        ({"body": {}}, "body"),
        ({"body": {1: 2}}, "not_msgpack"),
    ],
)
def test_what_an_envelope_may_not_hold(changes: dict[str, Any], reason: str) -> None:
    assert refused(packed(**changes)).reason == reason


@pytest.mark.parametrize("missing", ["v", "kind", "sender", "boot_id", "seq", "sent_ms", "body"])
def test_what_an_envelope_must_hold(missing: str) -> None:
    plain = envelope(DECLINE)
    del plain[missing]
    assert missing in str(refused(msgpack.packb(plain)))


@pytest.mark.parametrize(
    "change",
    [
        {"round": -1},
        {"round": 1.0},
        {"round": True},
        {"round": 1_000_001},
        {"attempt": 0},
        {"run_id": "../x"},
        {"run_id": "r\n"},
        {"run_id": b"r"},
        {"action": "delete"},
        {"reason": "x" * 2001},
        {"reason": None},
        {"extra": 1},
    ],
)
def test_what_a_body_may_not_hold(change: dict[str, Any]) -> None:
    (key,) = change
    error = refused(packed(body={**DECLINE.model_dump(), **change}))
    assert error.reason == "body"
    assert str(error).startswith(f"decline: {key}: ")


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("result", {"num_examples": 0}),
        ("result", {"metrics": {"loss": float("inf")}}),
        ("result", {"metrics": {"loss": float("nan")}}),
        ("result", {"metrics": {str(n): 0.0 for n in range(65)}}),
        ("result", {"metrics": {"x" * 65: 0.0}}),
        ("result", {"update": {"key": "k" * 513, "size_bytes": 1, "header_sha256": SHA}}),
        ("result", {"update": {"key": "k", "size_bytes": -1, "header_sha256": SHA}}),
        ("result", {"update": {"key": "k", "size_bytes": 1, "header_sha256": SHA.upper()}}),
        ("device_state", {"tasks": ["t"] * 65}),
        ("device_state", {"status": "dancing"}),
        ("device_info", {"labels": {str(n): "" for n in range(65)}}),
        ("health", {"metered": 1}),
        ("health", {"metered": "true"}),
        ("progress", {"fraction": 1.5}),
        ("progress", {"loss": float("nan")}),
        ("order", {"seed": 1 << 63}),
        ("order", {"time_left_s": float("inf")}),
        ("operator_request", {"operation": "os.system"}),
        ("order", {"model": None}),
        ("order", {"payload": b"x"}),
        ("order", {"phase": "x" * 33}),
        ("order", {"phase": "a.b"}),
        ("order", {"seq": 1 << 31}),
        ("result", {"seq": -1}),
        ("result", {"payload": b"x"}),
        ("receipt", {"phase": "A"}),
    ],
)
def test_bounds_of_bodies(kind: str, change: dict[str, Any]) -> None:
    message = SAMPLES[kind]
    payload = msgpack.packb(envelope(message, body={**message.model_dump(), **change}))
    error = refused(payload, address_of(message))
    assert error.reason == "body"
    assert next(iter(change)) in str(error)


@pytest.mark.parametrize("message", [EXCHANGE, EXCHANGED], ids=["order", "result"])
def test_an_exchange_comes_back_equal_and_its_payload_is_bounded(message: Order | Result) -> None:
    assert decode(wire(message), address_of(message), KEY.public)[1] == message
    most = message.model_copy(update={"payload": b"\xff" * MAX_EXCHANGE_BYTES})
    assert decode(wire(most), address_of(most), KEY.public)[1] == most
    body = {**message.model_dump(), "payload": b"\xff" * (MAX_EXCHANGE_BYTES + 1)}
    error = refused(msgpack.packb(envelope(message, body=body)), address_of(message))
    assert str(error).startswith(f"{message.kind}: payload:")


def test_an_order_of_one_message_says_nothing_of_phases() -> None:
    """A device of before there were any refuses keys that it does not know."""
    later = {"phase", "seq", "payload"}
    for kind in ("order", "result", "decline", "request", "receipt"):
        assert not later & SAMPLES[kind].model_dump().keys()
    assert later <= EXCHANGE.model_dump().keys()
    one = EXCHANGE.model_copy(update={"phase": "", "seq": 0, "payload": b""})
    assert decode(wire(one), address_of(one), KEY.public)[1] == one


def test_a_traceback_is_sent_where_there_is_one() -> None:
    assert isinstance(DECLINE, Decline)
    assert "traceback" not in DECLINE.model_dump()
    told = DECLINE.model_copy(update={"traceback": ["Traceback …", "KeyError: 'x'"]})
    assert decode(wire(told), address_of(told), KEY.public)[1] == told
    long = {**told.model_dump(), "traceback": [""] * 17}
    assert refused(packed(body=long)).reason == "body"


def test_a_refusal_shows_no_value_of_the_peer() -> None:
    secret = "a-secret-value"
    error = refused(packed(body={**DECLINE.model_dump(), "action": secret}))
    assert secret not in str(error)
    assert secret not in error.reason


def test_oversize_is_refused_both_ways() -> None:
    assert refused(bytes(MAX_MESSAGE_BYTES + 1)).reason == "oversize"
    with pytest.raises(RengoError, match=r"run_event message of \d+ bytes exceeds 262144"):
        wire(RunEvent(run_id="r", name="n", round=1, attempt=1, detail={"x": "x" * (1 << 18)}))


@pytest.mark.parametrize("value", [1 << 64, object(), {1, 2}, "\ud800"])
def test_what_the_wire_cannot_hold_is_a_named_error_of_the_sender(value: object) -> None:
    with pytest.raises(RengoError, match="operator_request"):
        wire(OperatorRequest(request_id="q", operation="runs_ls", arguments={"x": value}))


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"a": value}
    return value


def test_deep_nesting_is_refused() -> None:
    request = SAMPLES["operator_request"]
    address = address_of(request)
    within = {**request.model_dump(), "arguments": nested(MAX_NESTING - 2)}
    decode(signed(msgpack.packb(envelope(request, body=within)), address), address, KEY.public)
    beyond = {**request.model_dump(), "arguments": nested(MAX_NESTING - 1)}
    assert refused(msgpack.packb(envelope(request, body=beyond)), address).reason == "too_deep"


@pytest.mark.parametrize("opener", [b"\x91", b"\x81\xa1a"])
def test_a_tower_of_containers_is_refused(opener: bytes) -> None:
    refused(opener * 100_000 + b"\xc0")


def test_a_key_that_stands_twice_is_refused() -> None:
    wire_form = packed()
    assert wire_form[0] == 0x80 | 8
    twice = bytes([0x80 | 9]) + wire_form[1:] + msgpack.packb("v") + msgpack.packb(1)
    assert refused(twice).reason == "duplicate_key"


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        b"\xc0",
        b"\x93\x01\x02",
        b"{}",
        b"\xdf\xff\xff\xff\xff",
        b"\xdd\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xd6\xff\x00\x00\x00\x00",
        b"\xc7\x03\x01abc",
        b"\xa2\xff\xfe",
        b"\x81\xc0\x01",
        b"\x81\x90\x01",
        b"\x81\x80\x01",
    ],
)
def test_what_is_no_message_is_refused(payload: bytes) -> None:
    refused(payload)


def test_bytes_after_the_end_are_refused() -> None:
    assert refused(wire(DECLINE) + b"\x00").reason == "not_msgpack"


@pytest.mark.parametrize("cut", range(0, 100, 7))
def test_a_message_that_is_cut_is_refused(cut: int) -> None:
    payload = wire(DECLINE)
    refused(payload[: min(cut, len(payload) - 1)])


def test_reasons_are_few_whatever_the_peer_writes() -> None:
    """A peer must not be able to fill the counter's memory with words of its own."""
    reasons = {refused(packed(kind=f"kind-{n}")).reason for n in range(50)}
    reasons |= {refused(packed(sender=f"device-{n}")).reason for n in range(50)}
    reasons |= {refused(packed(body={f"key-{n}": 1})).reason for n in range(50)}
    assert len(reasons) == 3


def test_messages_do_not_change() -> None:
    assert isinstance(DECLINE, Decline)
    with pytest.raises(ValueError, match="frozen"):
        DECLINE.reason = ""  # type: ignore[misc]


def test_defaults_are_not_shared() -> None:
    first = OperatorReply(request_id="q", result={})
    assert (first.error, first.exit_code) == ("", 0)
    result = SAMPLES["result"]
    assert isinstance(result, Result)
    assert result.update is not None


LATER = {"domain", "tree", "population", "evaluators"}


@pytest.mark.parametrize("message", [*SAMPLES.values()], ids=lambda each: each.kind)
def test_what_only_domains_say_is_not_on_the_wire_of_a_device(message: Message) -> None:
    # servers and devices of the release before refuse keys that they do not know
    assert not LATER & envelope(message)["body"].keys()


def test_what_domains_say_comes_back() -> None:
    state = DeviceState(status="ready", boot_id="b-1", tasks=["digits"], domain=True)
    result = SAMPLES["result"].model_copy(update={"population": 7})
    order = SAMPLES["order"].model_copy(update={"evaluators": "devices"})
    for message in (state, result, order, DOMAIN_INFO):
        _, found = decode(wire(message), address_of(message), KEY.public)
        assert found == message
    assert DOMAIN_INFO.is_domain
    assert not SAMPLES["device_info"].is_domain  # type: ignore[attr-defined]
