"""Who may connect, changed while the broker runs, by a process that is not its parent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from broker.wire.access import BrokerUser


@dataclass(frozen=True)
class RefusedConnection:
    """A connection that the broker refused; "" for what it does not tell."""

    user: str
    address: str


class AccessControl(Protocol):
    """Changes a broker's users.

    Attributes:
        manages_users: False where the broker's operator makes them by hand.
    """

    manages_users: bool

    def apply(self, users: Sequence[BrokerUser]) -> None:
        """Replace all users of the site; returns when the broker has applied them.

        New ones may connect, removed ones are disconnected, the others stay connected. The same
        users again change nothing.

        Raises:
            ConfigError: bad users; nothing changed.
            TransportError: a running broker refused, or did not answer: try again later.
        """

    def refused_connections(self) -> list[RefusedConnection]:
        """Return the connections refused since the last call, as far as the broker tells."""

    def lasting_sessions(self) -> list[str]:
        """Return the client ids of the sessions that the broker keeps, as far as it tells.

        Raises:
            TransportError: it did not answer: try again later.
        """


class ManualAccess:
    """For a broker whose operator makes the users by hand: does nothing."""

    manages_users = False

    def apply(self, users: Sequence[BrokerUser]) -> None:
        """Do nothing."""

    def refused_connections(self) -> list[RefusedConnection]:
        """Return nothing: this broker is not asked."""
        return []

    def lasting_sessions(self) -> list[str]:
        """Return nothing: this broker is not asked."""
        return []
