"""The server's connection to the broker: what it publishes, signed, and what it subscribes to."""

from __future__ import annotations

from collections.abc import Callable

from broker.session.endpoint import Endpoint
from broker.session.inbox import SessionEvent
from broker.session.publication import Delivery, Publication
from broker.session.session import MqttSession
from broker.session.signer import MessageSigner
from broker.wire.messages import Message, OperatorReply, Order, Receipt, ServerState
from broker.wire.topics import Topics
from runtime.security.identity import Identity

_DEVICE_LEAVES = ("state", "info", "health", "data", "ack", "progress", "result", "request")


class ServerConnection:
    """Publishes the server's messages. Any thread may call it after ``start``.

    Args:
        identity: the server's own.
        epoch: of this start of the server.
        offer: accepts the session's events, False where there is no room for one more.

    Attributes:
        epoch: what the server's presence says from the next time on.
    """

    def __init__(
        self, identity: Identity, epoch: int, offer: Callable[[SessionEvent], bool]
    ) -> None:
        self.topics = Topics(identity.domain)
        self.endpoint = Endpoint.of(identity)
        self.epoch = epoch
        self._signer = MessageSigner(identity.id, identity.secret_key)
        topics = self.topics
        self._session = MqttSession(
            self.endpoint,
            [
                *(topics.device("+", leaf) for leaf in _DEVICE_LEAVES),
                topics.operator("+", "request"),
                topics.enroll("+"),
            ],
            offer,
            will=self._presence("offline"),
        )

    def start(self, timeout_s: float) -> None:
        """Connect.

        Raises:
            TransportError: the broker cannot be reached within the time, or refused its users.
        """
        self._session.start()
        self._session.wait_connected(timeout_s)

    def stop(self) -> None:
        """Publish that the server is offline, and disconnect."""
        self._session.stop(self._presence("offline"))

    def acknowledge(self, delivery: Delivery) -> None:
        """Have the broker forget a message."""
        self._session.ack(delivery)

    def publish(self, topic: str, message: Message, *, retain: bool = False) -> None:
        """Send now or never: a receiver that misses it asks again or reads a retained document."""
        self._session.publish(self._signer.sign(topic, message, retain=retain))

    def publish_retained(self, topic: str, message: Message) -> None:
        """Publish a retained document."""
        self.publish(topic, message, retain=True)

    def publish_online(self) -> None:
        """Publish the server's presence."""
        self._session.publish(self._presence("online"))

    def publish_order(self, device_id: str, order: Order) -> None:
        """Send a device an order."""
        self.publish(self.topics.device(device_id, "task"), order)

    def publish_receipt(self, device_id: str, receipt: Receipt) -> None:
        """Send a device a receipt."""
        self.publish(self.topics.device(device_id, "receipt"), receipt)

    def publish_reply(self, operator_id: str, reply: OperatorReply) -> None:
        """Send an operator a reply."""
        self.publish(self.topics.operator(operator_id, "reply"), reply)

    def clear(self, topic: str) -> None:
        """Remove a retained document."""
        self._session.publish(Publication(topic, b"", retain=True))

    def _presence(self, status: str) -> Publication:
        state = ServerState.model_validate({"status": status, "epoch": self.epoch})
        return self._signer.sign(self.topics.server_state, state, retain=True)
