"""The device's identity while its agent runs, and the rotation of its broker password.

A new password is on disk, beside the old one, before the server gets the confirmation: after a
power cut the device has whichever the broker accepts. The old one is deleted once the broker has
accepted the new one.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import SecretStr

from runtime.errors import PeerError
from runtime.security.identity import Identity, write_identity

_SHORTEST, _LONGEST = 8, 256


class DeviceCredentials:
    """One identity and its file.

    Attributes:
        server: the key of the only server whose signature is accepted.
    """

    def __init__(self, path: Path, identity: Identity) -> None:
        self.server = identity.believed
        self._path = path
        self._identity = identity

    def store_password(self, rotation: int, sealed: bytes) -> Identity | None:
        """Write a new password to disk; return the changed identity, None if it was there already.

        Args:
            rotation: the number of the password; a lower one than the latest is refused.
            sealed: the password.

        Raises:
            PeerError: it is an older one, was not sealed for this device, or cannot be a password.
        """
        if rotation < self._identity.rotation:
            raise PeerError("an older password than the one that is kept", "replayed")
        if rotation == self._identity.rotation:
            return None
        text = self._identity.secret_key.unseal(sealed).decode("ascii", "replace")
        if not (_SHORTEST <= len(text) <= _LONGEST and text.isascii() and text.isprintable()):
            raise PeerError("the new password is not usable", "password")
        return self._write(next_password=SecretStr(text), rotation=rotation)

    def confirm_password(self, password: str) -> Identity | None:
        """Delete the old password, now that the broker has accepted the new one."""
        following = self._identity.next_password
        if following is None or password != following.get_secret_value():
            return None
        return self._write(password=following, next_password=None)

    def _write(self, **changes: SecretStr | int | None) -> Identity:
        self._identity = self._identity.model_copy(update=changes)
        write_identity(self._path, self._identity)
        return self._identity
