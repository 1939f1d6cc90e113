"""Join tokens: what an operator hands to a device once, so that it may enrol.

A token holds a secret of 128 random bits, the domain, the server's public key and, where the site
has an authority of its own, that certificate's fingerprint: whoever has the token knows which
server to trust before the first message. From the secret come the token's id, the password of
the claim at the broker, and the key that signs the claim. The server keeps the id, the password and
the public key, from which nobody can make the token again.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import secrets
import zlib
from dataclasses import dataclass, field

from runtime.errors import ConfigError
from runtime.security.signing import PublicKey, SecretKey

PREFIX = "rengo_"
CLAIM_PREFIX = "join-"
_SECRET_BYTES = 16
_KEY_BYTES = 32
_CHECK_BYTES = 4
_PLAIN, _PINNED = 1, 2
_DOMAIN = re.compile(r"[a-z0-9_-]{1,64}")
_LONGEST = 512


@dataclass(frozen=True)
class JoinToken:
    """A join token.

    Args:
        secret: 16 random bytes, never shown but by ``text``.
        domain: the domain that the device joins.
        server_key: the only server to believe.
        ca_fingerprint: sha256 of the site's own authority, in hex; "" where there is none.
    """

    secret: bytes = field(repr=False)
    domain: str
    server_key: PublicKey
    ca_fingerprint: str = ""

    @classmethod
    def generate(cls, domain: str, server_key: PublicKey, ca_fingerprint: str = "") -> JoinToken:
        """Return a new token."""
        return cls(secrets.token_bytes(_SECRET_BYTES), domain, server_key, ca_fingerprint)

    @classmethod
    def of(
        cls, secret: bytes, domain: str, server_key: PublicKey, ca_fingerprint: str = ""
    ) -> JoinToken:
        """Return the token that a longer secret gives."""
        return cls(secret[:_SECRET_BYTES], domain, server_key, ca_fingerprint)

    @property
    def id(self) -> str:
        """The token's name, no secret: the claimant's user at the broker and its topic level."""
        return CLAIM_PREFIX + hashlib.blake2b(self.secret, digest_size=8).hexdigest()

    @property
    def key(self) -> SecretKey:
        """What signs the claim."""
        return SecretKey.derive(self.secret, "claim")

    @property
    def broker_password(self) -> str:
        """What the claimant shows to the broker."""
        return SecretKey.derive(self.secret, "broker").text

    @property
    def text(self) -> str:
        """The token as it is handed over: letters, digits, ``-`` and ``_``."""
        kind = _PINNED if self.ca_fingerprint else _PLAIN
        body = bytes([kind]) + self.secret + bytes.fromhex(self.server_key.text)
        body += bytes.fromhex(self.ca_fingerprint) + self.domain.encode()
        check = zlib.crc32(body).to_bytes(_CHECK_BYTES, "big")
        return PREFIX + base64.urlsafe_b64encode(body + check).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> JoinToken:
        """Return the token.

        Raises:
            ConfigError: it is none, or was mistyped; the text does not repeat it.
        """
        body = _checked(text.strip())
        kind, rest = body[0], body[1:]
        need = _SECRET_BYTES + _KEY_BYTES * (2 if kind == _PINNED else 1)
        if kind not in (_PLAIN, _PINNED) or len(rest) <= need:
            raise ConfigError("this join token is of another version of Rengo; upgrade this one")
        secret, keys = rest[:_SECRET_BYTES], rest[_SECRET_BYTES:need]
        domain = rest[need:].decode("ascii", "replace")
        if _DOMAIN.fullmatch(domain) is None:
            raise ConfigError("this join token is damaged: it names no domain")
        return cls(secret, domain, PublicKey(keys[:_KEY_BYTES].hex()), keys[_KEY_BYTES:].hex())


def _checked(text: str) -> bytes:
    """Return what stands before the check sum; ConfigError when the two do not match."""
    mistyped = ConfigError(
        f"this is not a join token, or it was mistyped: one begins with {PREFIX} and is copied "
        "whole, as `rengo devices invite` printed it"
    )
    if not text.startswith(PREFIX) or len(text) > _LONGEST:
        raise mistyped
    encoded = text.removeprefix(PREFIX)
    try:
        data = base64.b64decode(encoded + "=" * (-len(encoded) % 4), b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise mistyped from error
    body, check = data[:-_CHECK_BYTES], data[-_CHECK_BYTES:]
    if not body or zlib.crc32(body).to_bytes(_CHECK_BYTES, "big") != check:
        raise mistyped
    return body
