"""Ed25519 keys: who says something, and for whose eyes it is. The arithmetic is libsodium's.

A key both signs and opens what was sealed for it (libsodium derives the Curve25519 key from it), so
that a device or a server has one key, which never leaves it.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass, field
from functools import cached_property

from nacl.exceptions import CryptoError
from nacl.public import SealedBox
from nacl.secret import SecretBox
from nacl.signing import SigningKey, VerifyKey

from runtime.errors import ConfigError, PeerError

SIGNATURE_BYTES = 64
# no password has a colon
_HIDDEN = "hidden:"
_KEY = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class PublicKey:
    """The key by which others know its owner.

    Args:
        text: 64 lower-case hexadecimal digits.

    Raises:
        ConfigError: it is not a key.
    """

    text: str

    def __post_init__(self) -> None:
        _require_key(self.text, "public key")

    @cached_property
    def _verify_key(self) -> VerifyKey:
        return VerifyKey(bytes.fromhex(self.text))

    def verify(self, signature: bytes, data: bytes) -> None:
        """Return when the owner signed ``data``.

        Raises:
            PeerError: somebody else did, or the data were altered; ``reason`` is "signature".
        """
        try:
            self._verify_key.verify(data, signature)
        except (CryptoError, ValueError) as error:
            raise PeerError("the signature is not the sender's", "signature") from error

    def seal(self, data: bytes) -> bytes:
        """Return ``data`` so that the owner alone can read it, 48 bytes longer.

        Raises:
            PeerError: no sealed message can be made for this key; ``reason`` is "key".
        """
        try:
            return SealedBox(self._verify_key.to_curve25519_public_key()).encrypt(data)
        except (CryptoError, RuntimeError) as error:
            raise PeerError("nothing can be sealed for this key", "key") from error


@dataclass(frozen=True)
class SecretKey:
    """A key pair, by its 32-byte seed.

    Args:
        text: 64 lower-case hexadecimal digits, never shown.

    Raises:
        ConfigError: it is not a key.
    """

    text: str = field(repr=False)

    def __post_init__(self) -> None:
        _require_key(self.text, "secret key")

    @classmethod
    def generate(cls) -> SecretKey:
        """Return a new key."""
        return cls(bytes(SigningKey.generate()).hex())

    @classmethod
    def derive(cls, secret: bytes, purpose: str) -> SecretKey:
        """Return the key that ``secret`` (of at least 128 random bits) gives for one purpose."""
        return cls(hashlib.blake2b(secret, digest_size=32, person=_person(purpose)).hexdigest())

    @cached_property
    def _signing_key(self) -> SigningKey:
        return SigningKey(bytes.fromhex(self.text))

    @cached_property
    def public(self) -> PublicKey:
        """The public half."""
        return PublicKey(bytes(self._signing_key.verify_key).hex())

    def sign(self, data: bytes) -> bytes:
        """Return the signature, 64 bytes."""
        return self._signing_key.sign(data).signature

    def unseal(self, sealed: bytes) -> bytes:
        """Return what was sealed for this key.

        Raises:
            PeerError: it was sealed for another, or was altered; ``reason`` is "sealed".
        """
        try:
            return SealedBox(self._signing_key.to_curve25519_private_key()).decrypt(sealed)
        except (CryptoError, ValueError) as error:
            raise PeerError("this was sealed for another key, or was altered", "sealed") from error


class SecretStorage:
    """Texts at rest: who reads a database or its backup without the key learns none of them.

    Args:
        key: of whoever keeps them; theirs for this is derived from it.
    """

    def __init__(self, key: SecretKey) -> None:
        own = SecretKey.derive(bytes.fromhex(key.text), "at rest")
        self._box = SecretBox(bytes.fromhex(own.text))

    def hide(self, text: str) -> str:
        """Return a text as it is to be stored; "" stays."""
        if not text:
            return ""
        return _HIDDEN + base64.b64encode(self._box.encrypt(text.encode())).decode()

    def show(self, stored: str) -> str:
        """Return the text; one that was stored before as it was is returned as it is.

        Raises:
            PeerError: it was hidden with another key, or was altered; ``reason`` is "sealed".
        """
        if not stored.startswith(_HIDDEN):
            return stored
        try:
            hidden = base64.b64decode(stored.removeprefix(_HIDDEN), validate=True)
            return self._box.decrypt(hidden).decode()
        except (CryptoError, ValueError) as error:
            raise PeerError("this was hidden with another key, or was altered", "sealed") from error


def _require_key(text: str, what: str) -> None:
    if _KEY.fullmatch(text) is None:
        raise ConfigError(f"a {what} is 64 hexadecimal digits")


def _person(purpose: str) -> bytes:
    name = f"rengo {purpose}".encode()
    if len(name) > hashlib.blake2b.PERSON_SIZE:
        raise ConfigError(f"key purpose {purpose!r} is longer than 10 characters")
    return name
