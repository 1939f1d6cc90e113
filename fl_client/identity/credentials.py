"""The device's identity while it runs: whom it believes, and passwords that are being rotated.

A new password is on disk before the server is told, beside the one in force: whichever the broker
wants after a power cut is there. The old one goes when the broker has admitted the new one.
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
        server: the key of the only server that is believed.
    """

    def __init__(self, path: Path, identity: Identity) -> None:
        self.server = identity.believed
        self._path = path
        self._identity = identity

    def keep(self, rotation: int, sealed: bytes) -> Identity | None:
        """Put a new password on disk; return the changed identity, None when it has it already.

        Args:
            rotation: the number of the password; those before the latest are worth nothing.
            sealed: the password.

        Raises:
            PeerError: it is an older one, was not sealed for this device, or is no password.
        """
        if rotation < self._identity.rotation:
            raise PeerError("an older password than the one that is kept", "replayed")
        if rotation == self._identity.rotation:
            return None
        text = self._identity.secret_key.unseal(sealed).decode("ascii", "replace")
        if not (_SHORTEST <= len(text) <= _LONGEST and text.isascii() and text.isprintable()):
            raise PeerError("the new password is not usable", "password")
        return self._write(next_password=SecretStr(text), rotation=rotation)

    def admitted(self, password: str) -> Identity | None:
        """Drop the old password once the broker has admitted the new one."""
        following = self._identity.next_password
        if following is None or password != following.get_secret_value():
            return None
        return self._write(password=following, next_password=None)

    def _write(self, **changes: SecretStr | int | None) -> Identity:
        self._identity = self._identity.model_copy(update=changes)
        write_identity(self._path, self._identity)
        return self._identity
