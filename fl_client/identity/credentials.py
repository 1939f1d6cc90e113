"""The device's identity while its agent runs, and the rotation of its broker password.

A new password is on disk, beside all that may be in force, before the server gets the confirmation:
after a power cut the device has whichever the broker accepts. Those before it are deleted once the
broker has accepted it.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import SecretStr

from runtime.errors import PeerError
from runtime.security.identity import Identity, write_identity

_SHORTEST, _LONGEST = 8, 256
# the server offers one at a time; what says that it keeps more has lost count
_MOST_WAITING = 16


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
            PeerError: it is older than the latest, was not sealed for this device, or cannot be a
                password; or too many wait already.
        """
        if rotation < self._identity.rotation:
            raise PeerError("an older password than the one that is kept", "replayed")
        if rotation == self._identity.rotation:
            return None
        text = self._identity.secret_key.unseal(sealed).decode("ascii", "replace")
        if not (_SHORTEST <= len(text) <= _LONGEST and text.isascii() and text.isprintable()):
            raise PeerError("the new password is not usable", "password")
        waiting = self._identity.waiting_passwords
        if len(waiting) >= _MOST_WAITING:
            raise PeerError("the broker has admitted none of the passwords before", "password")
        return self._write(
            earlier_passwords=waiting, next_password=SecretStr(text), rotation=rotation
        )

    def confirm_password(self, password: str) -> Identity | None:
        """Delete what is older than a new password that the broker has accepted.

        Those that are newer stay: the broker may take them next.
        """
        waiting = self._identity.waiting_passwords
        texts = [each.get_secret_value() for each in waiting]
        if password not in texts:
            return None
        place = texts.index(password)
        newer = waiting[place + 1 :]
        return self._write(
            password=waiting[place],
            earlier_passwords=newer[:-1],
            next_password=newer[-1] if newer else None,
        )

    def _write(self, **changes: object) -> Identity:
        self._identity = self._identity.model_copy(update=changes)
        write_identity(self._path, self._identity)
        return self._identity
