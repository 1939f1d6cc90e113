"""Who may connect, changed while the broker runs: used by the server, which is not its parent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from broker.brokers.emqx import EmqxAccess
from broker.brokers.managed import RefusedConnection
from broker.brokers.mosquitto import MosquittoAccess
from broker.brokers.nats import NatsAccess
from broker.wire.access import BrokerUser

__all__ = ["AccessControl", "EmqxAccess", "ManualAccess", "MosquittoAccess", "NatsAccess"]


class AccessControl(Protocol):
    """What changes a broker's users.

    Attributes:
        ours: whether it does; False where the broker's operator makes them.
    """

    ours: bool

    def apply(self, users: Sequence[BrokerUser]) -> None:
        """Replace all users of the site; returns when the broker has taken them.

        New ones may connect, removed ones are cut off, the others stay. The same users again
        change nothing.

        Raises:
            ConfigError: bad users; nothing changed.
            TransportError: a running broker refused, or did not answer: try again later.
        """

    def refused(self) -> list[RefusedConnection]:
        """Return whom the broker did not let in since the last call, as far as it tells."""


class ManualAccess:
    """For a broker whose operator makes the users by hand: does nothing."""

    ours = False

    def apply(self, users: Sequence[BrokerUser]) -> None:
        """Do nothing."""

    def refused(self) -> list[RefusedConnection]:
        """Return nothing: this broker is not asked."""
        return []
