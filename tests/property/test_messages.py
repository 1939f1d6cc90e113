"""No bytes from the network do anything but decode or raise PeerError."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.wire.messages import MAX_NESTING, Message, RunEvent, decode
from broker.wire.topics import Address
from runtime.errors import PeerError
from runtime.security.signing import SIGNATURE_BYTES
from tests.messages import EVERY, KEY, address_of, content, envelope, wire

ADDRESSES = [address_of(message) for message in EVERY]
MUTATIONS, _AT_A_TIME = 100_000, 100

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=20)
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


def outcome(payload: bytes, address: Address) -> str:
    """Return why an envelope was refused, or "taken"; any other error is the test's failure.

    Its signature is not looked at: whoever is admitted can sign what he likes.
    """
    try:
        decode(bytes(SIGNATURE_BYTES) + payload, address, None)
    except PeerError as error:
        return error.reason
    return "taken"


def mutated(source: random.Random, payload: bytes, other: bytes) -> bytes:
    """Return the payload after one to four small injuries."""
    data = bytearray(payload)
    for _ in range(source.randint(1, 4)):
        at = source.randrange(len(data) + 1)
        match source.randrange(6):
            case 0 if at < len(data):
                data[at] ^= 1 << source.randrange(8)
            case 1 if at < len(data):
                data[at] = source.choice(b"\xc0\xc1\xc2\xcb\xd9\xdc\xde\xdf\x80\x90\xff\x00")
            case 2:
                del data[at : at + source.randint(1, 8)]
            case 3:
                data[at:at] = source.randbytes(source.randint(1, 8))
            case 4:
                data[at:] = other[source.randrange(len(other)) :]
            case _:
                data[at:at] = data[source.randrange(len(data) + 1) :][:16]
    return bytes(data)


def test_a_hundred_thousand_injured_messages() -> None:
    wires = [content(message) for message in EVERY]
    seen: Counter[str] = Counter()

    @settings(max_examples=MUTATIONS // _AT_A_TIME, database=None)
    @given(st.integers(0, (1 << 64) - 1))
    def injure(seed: int) -> None:
        source = random.Random(seed)
        for _ in range(_AT_A_TIME):
            index = source.randrange(len(wires))
            payload = mutated(source, wires[index], source.choice(wires))
            seen[outcome(payload, ADDRESSES[index])] += 1

    injure()
    assert seen.total() >= MUTATIONS
    # the injuries must reach every gate, or this test looks at one of them alone
    assert {"not_msgpack", "envelope", "body", "unknown_kind", "schema_version"} <= seen.keys()
    assert {"wrong_sender", "duplicate_key", "taken"} <= seen.keys(), seen


@settings(max_examples=300)
@given(st.binary(max_size=200), st.sampled_from(ADDRESSES))
def test_random_bytes(payload: bytes, address: Address) -> None:
    assert outcome(payload, address) != "taken"


@settings(max_examples=300)
@given(values)
def test_any_msgpack_value(value: Any) -> None:
    assert outcome(msgpack.packb(value), ADDRESSES[0]) != "taken"


@settings(max_examples=150)
@given(
    st.sampled_from(EVERY),
    st.dictionaries(st.text(max_size=8), values, max_size=3),
    st.data(),
)
def test_any_values_in_a_body(message: Message, more: dict[str, Any], data: st.DataObject) -> None:
    body = message.model_dump()
    for key in data.draw(st.sets(st.sampled_from(sorted(body)), max_size=3)):
        body[key] = data.draw(values)
    payload = msgpack.packb(envelope(message, body={**body, **more}))
    assert outcome(payload, address_of(message)) in {"taken", "body", "too_deep"}


@settings(max_examples=100)
@given(st.sampled_from(EVERY), st.data())
def test_any_values_in_an_envelope(message: Message, data: st.DataObject) -> None:
    plain = envelope(message)
    for key in data.draw(st.sets(st.sampled_from(sorted(plain)), min_size=1, max_size=3)):
        plain[key] = data.draw(values)
    outcome(msgpack.packb(plain), address_of(message))


@settings(max_examples=100)
@given(st.dictionaries(st.text(max_size=8), values, max_size=4))
def test_free_settings_come_back_as_they_were(detail: dict[str, Any]) -> None:
    message = RunEvent(run_id="r", name="n", round=1, attempt=1, detail=detail)
    _, found = decode(wire(message), address_of(message), KEY.public)
    assert isinstance(found, RunEvent)
    assert msgpack.packb(found.detail) == msgpack.packb(detail)  # NaN is not equal to itself


@pytest.mark.parametrize("depth", [MAX_NESTING + 1, 100, 500, 511, 512, 1000, 1023, 1024, 5000])
def test_any_depth(depth: int) -> None:
    for payload in (b"\x91" * depth + b"\xc0", b"\x81\xa1a" * depth + b"\xc0"):
        assert outcome(payload, ADDRESSES[0]) in {"too_deep", "not_msgpack"}
