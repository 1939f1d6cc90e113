"""Whoever writes messages: numbers them, dates them and signs them."""

from __future__ import annotations

import itertools
import secrets
import time

from broker.session.connection import Publication
from broker.wire.messages import Message, encode
from broker.wire.topics import parse
from runtime.security.signing import SecretKey


class MessageSigner:
    """Makes one identity's messages; any thread may write.

    Attributes:
        boot_id: tells this process (a device: this connection) from earlier ones of its identity.
    """

    def __init__(self, sender: str, key: SecretKey) -> None:
        self.boot_id = new_boot_id()
        self._sender = sender
        self._key = key
        self._numbers = itertools.count()

    def write(self, topic: str, message: Message, *, retain: bool = False) -> Publication:
        """Return the message as it goes to ``topic``.

        Raises:
            MessageTooLarge, ConfigError: as ``broker.wire.messages.encode``.
        """
        payload = encode(
            message,
            parse(topic),
            self._key,
            sender=self._sender,
            boot_id=self.boot_id,
            seq=next(self._numbers),
            # a clock may stand before 1970
            sent_ms=max(0, int(time.time() * 1000)),
        )
        return Publication(topic, payload, retain=retain)


def new_boot_id() -> str:
    """Return an id that no boot had before."""
    return secrets.token_hex(8)
