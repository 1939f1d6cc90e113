"""What the broker tells of its connections and sessions, and the end of sessions. On any thread."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from broker.brokers.access_control import AccessControl, RefusedConnection
from broker.session.end_session import end_session
from broker.session.endpoint import Endpoint


@dataclass(frozen=True)
class BrokerWatch:
    """Asks the broker of one domain.

    Args:
        access: what the broker tells.
        endpoint: the server's own way to the broker.
    """

    access: AccessControl
    endpoint: Endpoint

    def refused_connections(self) -> Counter[RefusedConnection]:
        """Return which connections the broker refused since the last call; one thread at a time."""
        return Counter(self.access.refused_connections())

    def lasting_sessions(self) -> list[str]:
        """Return the client ids of the sessions that the broker keeps, as far as it tells.

        Raises:
            TransportError: it did not answer.
        """
        return self.access.lasting_sessions()

    def end_sessions(self, client_ids: Sequence[str]) -> None:
        """End sessions, with their connections, subscriptions and queues.

        Raises:
            TransportError: the broker cannot be reached or refused.
        """
        for client_id in client_ids:
            end_session(self.endpoint, client_id)
