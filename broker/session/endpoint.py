"""Where a broker is and who connects to it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from runtime.errors import ConfigError, TransportError
from runtime.security.tls import Tls

if TYPE_CHECKING:
    from runtime.security.identity import Identity

_CLIENT_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")


class Unanswered(TransportError):
    """The broker took the connection and ended it before it answered."""


class ClientIdInUse(TransportError):
    """Another process connects with the same client id: stop one of them, or give it its own."""


@dataclass(frozen=True)
class Endpoint:
    """Where a broker is and who connects.

    Args:
        host: the broker's name or address.
        port: its MQTT port.
        username: the identity.
        password: its secret, never shown.
        other_passwords: of rotations; each is tried when the broker refuses the one before.
        client_id: unique on the broker: letters, digits, ``_`` and ``-``.
        keepalive_s: a silent connection is given up after about 1.5 times this.
        protocol: the MQTT version.
        tls: which authority to trust and which certificate to present; None connects without TLS.
        persistent: the broker keeps subscriptions and queued messages between connections; False
            for a short-lived client, which leaves nothing behind, subscribes at QoS 0 and asks
            again for what does not come.

    Raises:
        ConfigError: the client id, the protocol or the TLS material is not usable.
    """

    host: str
    port: int
    username: str
    password: str = field(repr=False)
    client_id: str
    keepalive_s: int = 15
    protocol: Literal["3.1.1", "5"] = "3.1.1"
    tls: Tls | None = None
    persistent: bool = True
    other_passwords: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if _CLIENT_ID.fullmatch(self.client_id) is None:
            raise ConfigError(
                f"client id {self.client_id!r} is not usable: "
                "use 1 to 128 letters, digits, '_' and '-'"
            )
        if self.protocol not in ("3.1.1", "5"):
            raise ConfigError(f"MQTT protocol {self.protocol!r}: choose '3.1.1' or '5'")
        if self.tls is not None:
            self.tls.context()

    @classmethod
    def of(cls, identity: Identity) -> Endpoint:
        """Return an identity's endpoint."""
        return cls(
            identity.host,
            identity.port,
            identity.id,
            identity.password.get_secret_value(),
            identity.client_id,
            tls=identity.trust,
            other_passwords=tuple(each.get_secret_value() for each in identity.waiting_passwords),
        )

    def with_following_password(self) -> Endpoint:
        """Return the same with the first of the others in place of the password, now the last."""
        if not self.other_passwords:
            return self
        following, *others = self.other_passwords
        return replace(self, password=following, other_passwords=(*others, self.password))

    @property
    def address(self) -> str:
        """Host and port, for messages."""
        return f"{self.host}:{self.port}"
