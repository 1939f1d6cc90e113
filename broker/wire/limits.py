"""The limits that every message is checked against before it is stored or sent."""

from __future__ import annotations

from broker.wire.topics import LEVEL, MAX_LEVELS
from runtime.errors import ConfigError, RengoError

MAX_MESSAGE_BYTES = 256 * 1024
# of the payload of one message of an exchange, without its envelope
MAX_EXCHANGE_BYTES = 128 * 1024


class MessageTooLarge(RengoError):
    """The payload is over the limit: send a reference to an object instead."""


def check_message(topic: str, payload: bytes) -> None:
    """Raise for a message on which a broker would close the connection.

    Raises:
        ConfigError: the topic holds an empty level, a wildcard, a space or another character that
            some brokers refuse.
        MessageTooLarge: the payload exceeds MAX_MESSAGE_BYTES.
    """
    levels = topic.split("/")
    if len(levels) > MAX_LEVELS or not all(LEVEL.fullmatch(level) for level in levels):
        raise ConfigError(f"not a topic to publish to: {topic[:200]!r}")
    if len(payload) > MAX_MESSAGE_BYTES:
        raise MessageTooLarge(
            f"a message of {len(payload)} bytes on {topic} exceeds {MAX_MESSAGE_BYTES}; "
            "weights and files go through the object store"
        )
