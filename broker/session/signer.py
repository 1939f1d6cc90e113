"""Makes the messages of one sender: numbered, dated and signed."""

from __future__ import annotations

import itertools
import secrets
import time

from broker.session.publication import Publication
from broker.wire.messages import Message, encode
from broker.wire.topics import parse
from runtime.security.signing import SecretKey


class MessageSigner:
    """Signs one identity's messages, on any thread.

    Attributes:
        boot_id: differs for each process (on a device: each connection) of the identity.
    """

    def __init__(self, sender: str, key: SecretKey) -> None:
        self.boot_id = new_boot_id()
        self._sender = sender
        self._key = key
        self._numbers = itertools.count()

    def sign(self, topic: str, message: Message, *, retain: bool = False) -> Publication:
        """Return the signed message for ``topic``.

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
            # a clock may be set before 1970
            sent_ms=max(0, int(time.time() * 1000)),
        )
        return Publication(topic, payload, retain=retain)


def new_boot_id(process: str = "") -> str:
    """Return a random id for a boot; that of a connection begins with its process's."""
    random = secrets.token_hex(8)
    return f"{process}-{random}" if process else random
