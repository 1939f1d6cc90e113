"""Ends a session at the broker: its subscriptions and all that is queued for it."""

from __future__ import annotations

from dataclasses import replace

from broker.session.connection import Connection, Endpoint, Hooks
from runtime.errors import TransportError

_PATIENCE_S = 10.0


def end_session(endpoint: Endpoint, client_id: str) -> None:
    """Take the session over with a clean one, and leave at once.

    Brokers know a session by its client id, whoever connects: so the server, which gave a device
    its secret client id, can take its queue away again.

    Args:
        endpoint: where the broker is, and credentials that it admits.
        client_id: the session's.

    Raises:
        TransportError: the broker cannot be reached or refused.
    """
    hooks = Hooks(
        up=lambda _link, _present: None,
        subscribed=lambda: None,
        delivery=lambda _delivery: None,
        answer=lambda _link, _mid, _failure: None,
        fault=lambda _error: None,
        end=lambda: None,
    )
    link = Connection(replace(endpoint, client_id=client_id, persistent=False), 1, (), None, hooks)
    link.open()
    try:
        if not link.answered.wait(_PATIENCE_S):
            raise TransportError("the MQTT broker accepted the socket but not the session")
        if link.up_at_s is None:
            raise link.error or TransportError(link.reason)
    finally:
        link.close("the session was ended")
