"""Encoding and decoding: signed msgpack, strictly validated, bounded, unknown kinds refused.

An envelope carries what MQTT 5 properties would (MQTT 3.1.1 has none) and one body. A body's class
is looked up in a fixed table by ``kind``: nothing from the wire is ever an import path. Before the
envelope stands its sender's signature over the topic and the envelope, so that a broker can delay
a message or drop it, but not forge one, alter one or bring one to another topic.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgpack
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from broker.wire.limits import MAX_MESSAGE_BYTES, MessageTooLarge
from broker.wire.messages.base import Id, Message, Seconds
from broker.wire.messages.kinds import KINDS
from broker.wire.topics import Address
from runtime.errors import ConfigError, PeerError
from runtime.security.signing import SIGNATURE_BYTES, PublicKey, SecretKey

SCHEMA_VERSION = 1
MAX_NESTING = 16
_MESSAGE_CHARS = 500


class RefusedBody(PeerError):
    """A message whose envelope is in order, and whose body is not.

    Attributes:
        kind: the message's.
        body: as it came, of a sender whose signature was verified.
    """

    def __init__(self, text: str, kind: type[Message], body: dict[str, Any]) -> None:
        super().__init__(text, "body")
        self.kind = kind
        self.body = body


class Envelope(BaseModel):
    """What surrounds every body.

    ``sent_ms`` is the sender's clock, for people; a device also compares the server's with the date
    on which a bundle's signature expires. Nothing else depends on it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    v: int
    kind: Annotated[str, Field(max_length=64)]
    sender: Id
    boot_id: Id
    seq: Annotated[int, Field(ge=0, lt=1 << 63)]
    sent_ms: Annotated[int, Field(ge=0, lt=1 << 63)]
    ttl_s: Seconds | None = None
    body: dict[str, Any]


def encode(
    message: Message,
    address: Address,
    key: SecretKey,
    *,
    sender: str,
    boot_id: str,
    seq: int,
    sent_ms: int,
) -> bytes:
    """Return the bytes of a message for ``address``, signed by ``key``.

    Raises:
        MessageTooLarge: it is larger than a message may be.
        ConfigError: a setting has a value that msgpack cannot encode, as a date.
    """
    fields = {
        "v": SCHEMA_VERSION,
        "kind": message.kind,
        "sender": sender,
        "boot_id": boot_id,
        "seq": seq,
        "sent_ms": sent_ms,
        "ttl_s": None,
        "body": message.model_dump(),
    }
    try:
        envelope: bytes = msgpack.packb(fields)
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"a {message.kind} message cannot hold this: {error}") from error
    size = SIGNATURE_BYTES + len(envelope)
    if size > MAX_MESSAGE_BYTES:
        raise MessageTooLarge(
            f"a {message.kind} message of {size} bytes exceeds {MAX_MESSAGE_BYTES}"
        )
    return key.sign(_signed(address, envelope)) + envelope


def decode(payload: bytes, address: Address, key: PublicKey | None) -> tuple[Envelope, Message]:
    """Return the envelope and the validated body of a message from ``address``.

    Args:
        payload: the message's bytes.
        address: its topic.
        key: the public key of the only sender that may publish there; None where no key is known
            and the message is only shown to a person.

    Raises:
        PeerError: oversized, not signed by ``key``, malformed, of another schema version, of an
            unknown kind, on the wrong topic, or of another sender than the topic names; ``reason``
            says which.
    """
    if len(payload) > MAX_MESSAGE_BYTES:
        raise PeerError(
            f"a message of {len(payload)} bytes exceeds {MAX_MESSAGE_BYTES}", "oversize"
        )
    signature, content = payload[:SIGNATURE_BYTES], payload[SIGNATURE_BYTES:]
    if key is not None:
        key.verify(signature, _signed(address, content))
    envelope = _envelope(content)
    if envelope.v != SCHEMA_VERSION:
        raise PeerError(
            f"schema version {envelope.v}, this side speaks {SCHEMA_VERSION}", "schema_version"
        )
    message_type = KINDS.get(envelope.kind)
    if message_type is None:
        raise PeerError(f"unknown kind {envelope.kind!r}", "unknown_kind")
    if message_type.channel != (address.area, address.leaf):
        raise PeerError(f"a {envelope.kind} message does not belong on {address}", "wrong_place")
    sender = envelope.sender
    if _written_by_owner(address) and sender != address.id:
        raise PeerError(f"sender {sender!r} wrote on the topic of {address.id!r}", "wrong_sender")
    try:
        return envelope, message_type.model_validate(envelope.body)
    except ValidationError as error:
        problem = f"{envelope.kind}: {_first_problem(error)}"
        raise RefusedBody(problem, message_type, envelope.body) from error


def _signed(address: Address, envelope: bytes) -> bytes:
    """Return what a signature covers: the topic, a byte that ends it, and the envelope."""
    return address.topic.encode() + b"\0" + envelope


def _first_problem(error: ValidationError) -> str:
    """Return the first problem of a validation, with its key, without the offending value."""
    problem = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part)[:64] for part in problem["loc"]) or "body"
    # it may name keys of settings, which the sender chose
    return f"{where}: {problem['msg'][:_MESSAGE_CHARS]}"


def _envelope(content: bytes) -> Envelope:
    try:
        raw = msgpack.unpackb(
            content,
            raw=False,
            strict_map_key=True,
            object_pairs_hook=_unique_pairs,
            max_ext_len=0,
        )
    except PeerError:
        raise
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise PeerError(f"not msgpack: {type(error).__name__}", "not_msgpack") from error
    _require_shallow(raw)
    try:
        return Envelope.model_validate(raw)
    except ValidationError as error:
        raise PeerError(f"envelope: {_first_problem(error)}", "envelope") from error


def _unique_pairs(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise PeerError("a key stands twice in one map", "duplicate_key")
    return unique


def _require_shallow(value: Any, depth: int = 0) -> None:
    if depth > MAX_NESTING:
        raise PeerError(f"nested deeper than {MAX_NESTING}", "too_deep")
    children: Any = ()
    if isinstance(value, Mapping):
        children = value.values()
    elif isinstance(value, list):
        children = value
    for child in children:
        _require_shallow(child, depth + 1)


def _written_by_owner(address: Address) -> bool:
    """Whether the level after the area names the writer, not the reader."""
    match address.area:
        case "dev":
            return address.leaf not in {"task", "receipt"}
        case "op":
            return address.leaf == "request"
        case "enroll":
            return address.leaf == ""
    return False
