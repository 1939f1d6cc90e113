"""Ends a session at the broker: its subscriptions and all that is queued for it."""

from __future__ import annotations

from dataclasses import replace

from broker.session.connection import Connection, ConnectionCallbacks
from broker.session.endpoint import Endpoint
from runtime.errors import TransportError

_CONNACK_TIMEOUT_S = 10.0


def end_session(endpoint: Endpoint, client_id: str) -> None:
    """Take the session over with a clean one, which ends at once.

    A broker knows a session by its client id, whoever connects. So the server, which chose a
    device's secret client id, can delete the device's queue.

    Args:
        endpoint: where the broker is, and credentials that it accepts.
        client_id: the session's.

    Raises:
        TransportError: the broker cannot be reached or refused.
    """
    clean = replace(endpoint, client_id=client_id, persistent=False)
    connection = Connection(clean, 1, (), None, ConnectionCallbacks())
    connection.open()
    try:
        if not connection.answered.wait(_CONNACK_TIMEOUT_S):
            raise TransportError("the MQTT broker accepted the socket but not the session")
        if connection.connected_at_s is None:
            raise connection.error or TransportError(connection.reason)
    finally:
        connection.close("the session was ended")
