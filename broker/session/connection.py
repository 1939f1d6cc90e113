"""One MQTT connection, from TCP to its loss: a fresh paho client that is never used again.

A paho client that reconnects sends again what it still holds in memory, beside what the caller
sends again. So nothing outlives a connection here: what must not be lost is in the outbox.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from broker.session.endpoint import ClientIdInUse, Endpoint
from broker.session.paho_client import PahoClient, TlsSocket
from broker.session.publication import Delivery, Publication
from runtime.errors import AuthenticationFailed, TransportError
from runtime.security.tls import tls_error

CONNECT_TIMEOUT_S = 5.0
_SESSION_EXPIRY_S = 30 * 24 * 3600
_MAX_INFLIGHT = 128
_MAX_QUEUED = 20_000
_CLOSE_GRACE_S = 1.0
_UNSPECIFIED = 0x80
_SESSION_TAKEN_OVER = 0x8E
_BAD_CREDENTIALS = (0x86, 0x87)


def _ignore(*_: object) -> None:
    """Do nothing with what happened."""


@dataclass(frozen=True)
class ConnectionCallbacks:
    """Called by a connection on its network thread; none may block.

    Args:
        connected: the broker accepted; with whether it knew the session.
        subscribed: the broker answered the subscriptions; from here on it queues for this client.
        received: a message, unacknowledged until ``Connection.ack``.
        answered: the message id of a publish, and why the broker refused it (None: it did not).
        failed: an error that does not end the thread.
        ended: the thread is about to end.
    """

    connected: Callable[[Connection, bool], None] = _ignore
    subscribed: Callable[[], None] = _ignore
    received: Callable[[Delivery], None] = _ignore
    answered: Callable[[Connection, int, str | None], None] = _ignore
    failed: Callable[[Exception], None] = _ignore
    ended: Callable[[], None] = _ignore


class Connection:
    """One connection of a session.

    ``publish`` and ``ack`` may be called by any thread, ``open`` and ``close`` by the session's.

    Args:
        endpoint: where to connect.
        generation: grows with every connection of a session.
        subscriptions: MQTT filters, subscribed as soon as the broker accepts.
        will: published by the broker when the connection is lost.
        callbacks: the session's.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        generation: int,
        subscriptions: Sequence[str],
        will: Publication | None,
        callbacks: ConnectionCallbacks,
    ) -> None:
        self.endpoint = endpoint
        self.generation = generation
        self.connected_at_s: float | None = None
        self.subscribed = not subscriptions
        self.error: TransportError | None = None
        self.answered = threading.Event()
        self.unanswered = 0  # publishes; under the session's lock
        self._subscriptions = tuple(subscriptions)
        self._callbacks = callbacks
        self._ended = threading.Event()
        self._network_thread: threading.Thread | None = None
        self._socket: socket.socket | None = None
        self._reason = ""
        self._client = self._build(will)

    def _build(self, will: Publication | None) -> PahoClient:
        endpoint = self.endpoint
        modern = endpoint.protocol == "5"
        client = PahoClient(
            CallbackAPIVersion.VERSION2,
            client_id=endpoint.client_id,
            clean_session=None if modern else not endpoint.persistent,
            protocol=mqtt.MQTTv5 if modern else mqtt.MQTTv311,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        client.observer = self
        client.username_pw_set(endpoint.username, endpoint.password)
        client.connect_timeout = CONNECT_TIMEOUT_S
        client.max_inflight_messages_set(_MAX_INFLIGHT)
        client.max_queued_messages_set(_MAX_QUEUED)
        if endpoint.tls is not None:
            context = endpoint.tls.context()
            context.sslsocket_class = TlsSocket
            client.tls_set_context(context)
        if will is not None:
            client.will_set(will.topic, will.payload, qos=will.qos, retain=will.retain)
        # before connect: a handler that is set later misses what the broker sends first
        client.on_socket_open = self._on_socket_open
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_disconnect = self._on_disconnect
        return client

    @property
    def ended(self) -> bool:
        """Whether the network thread has ended."""
        return self._ended.is_set()

    @property
    def reason(self) -> str:
        """Why the connection ended, for a person."""
        return self._reason or "the connection was lost"

    def open(self) -> None:
        """Connect the socket and start the network thread; the callback ``connected`` follows.

        Raises:
            AuthenticationFailed: the broker's certificate is refused (UntrustedPeer), or ours.
            TransportError: the broker's address cannot be reached, or TLS failed otherwise.
        """
        options: dict[str, Any] = {}
        if self.endpoint.protocol == "5":
            options["clean_start"] = not self.endpoint.persistent
            if self.endpoint.persistent:
                properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
                properties.SessionExpiryInterval = _SESSION_EXPIRY_S
                options["properties"] = properties
        try:
            self._client.connect(
                self.endpoint.host, self.endpoint.port, self.endpoint.keepalive_s, **options
            )
        except (OSError, ValueError) as error:
            self._ended.set()
            raise self._tls_error(error) or TransportError(
                f"cannot reach the MQTT broker at {self.endpoint.address}: {error}"
            ) from error
        self._client.loop_start()

    def _tls_error(self, error: BaseException | None) -> TransportError | None:
        if error is None:
            return None
        return tls_error(error, f"the MQTT broker at {self.endpoint.address}")

    def publish(self, publication: Publication) -> int | None:
        """Hand a message to the network thread; return its message id, None if it was refused."""
        if self.ended or self.connected_at_s is None:
            return None
        info = self._client.publish(
            publication.topic, publication.payload, publication.qos, publication.retain
        )
        # on NO_CONN paho queues the message nonetheless, in a client that is never used again
        return info.mid if info.rc == MQTTErrorCode.MQTT_ERR_SUCCESS else None

    def ack(self, mid: int) -> None:
        """Acknowledge a delivery of this connection."""
        self._client.ack(mid, 1)

    def close(self, reason: str = "") -> None:
        """End the connection in order, so that the will is not sent, and join its thread."""
        self._reason = self._reason or reason
        self._client.disconnect()
        if not self._ended.wait(_CLOSE_GRACE_S):
            sock = self._client.socket()
            if isinstance(sock, socket.socket):
                try:
                    sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # it has just been closed
            self._ended.wait(CONNECT_TIMEOUT_S)
        # not loop_stop, which fails when the thread ends at the same moment
        if self._network_thread is not None:
            self._network_thread.join()
        self._release()

    def _release(self) -> None:
        """Break the reference cycles, so that paho's sockets close now, not at a collection."""
        client = self._client
        client.on_socket_open = client.on_connect = client.on_subscribe = None
        client.on_message = client.on_publish = client.on_disconnect = None
        client.observer = None
        self._socket = None

    def loop_began(self) -> None:
        """The network thread begins."""
        self._network_thread = threading.current_thread()

    def loop_failed(self, error: Exception) -> None:
        """The network thread failed, in paho itself or in a callback."""
        self._reason = f"the network thread failed: {error!r}"
        self._callbacks.failed(error)

    def loop_ended(self) -> None:
        """The network thread ends."""
        self.answered.set()
        self._ended.set()
        self._callbacks.ended()

    def _on_socket_open(self, _client: mqtt.Client, _userdata: Any, sock: Any) -> None:
        self._socket = sock
        # without it a small publish waits 40 ms for the acknowledgement of the one before
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _on_connect(
        self,
        client: mqtt.Client,
        _userdata: Any,
        flags: mqtt.ConnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            kind = AuthenticationFailed if reason.value in _BAD_CREDENTIALS else TransportError
            self.error = kind(
                f"the MQTT broker at {self.endpoint.address} refused "
                f"user {self.endpoint.username!r}: {reason}"
            )
            self._reason = str(self.error)
            return
        # on every connection, session present or not: the broker then sends retained documents
        # again, and one that lost its state has the subscriptions again
        if self._subscriptions:
            # at QoS 1 the end of a clean session makes NATS lose acknowledged messages of others
            qos = 1 if self.endpoint.persistent else 0
            client.subscribe([(each, qos) for each in self._subscriptions])
        self.connected_at_s = time.monotonic()
        self._callbacks.connected(self, flags.session_present)
        self.answered.set()

    def _on_subscribe(
        self,
        _client: mqtt.Client,
        _userdata: Any,
        _mid: int,
        reasons: list[ReasonCode],
        _properties: Properties | None,
    ) -> None:
        denied = [
            topic
            for topic, reason in zip(self._subscriptions, reasons, strict=False)
            if reason.is_failure
        ]
        if denied:
            self._callbacks.failed(
                TransportError(
                    f"the broker refused {self.endpoint.username!r} the subscription to "
                    f"{', '.join(denied)}"
                )
            )
        self.subscribed = True
        self._callbacks.subscribed()

    def _on_message(self, _client: mqtt.Client, _userdata: Any, message: mqtt.MQTTMessage) -> None:
        try:
            delivery = Delivery(
                message.topic,
                bytes(message.payload),
                bool(message.retain),
                message.mid if message.qos else 0,
                self.generation,
            )
            self._callbacks.received(delivery)
        except Exception as error:  # noqa: BLE001 (it would kill paho's thread, unnoticed)
            self._callbacks.failed(error)

    def _on_publish(
        self,
        _client: mqtt.Client,
        _userdata: Any,
        mid: int,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        self._callbacks.answered(self, mid, str(reason) if reason.is_failure else None)

    def _on_disconnect(
        self,
        _client: mqtt.Client,
        _userdata: Any,
        _flags: mqtt.DisconnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        if reason.value == _SESSION_TAKEN_OVER:
            self.error = ClientIdInUse(
                f"client id {self.endpoint.client_id!r} is used by another process, "
                "which took the session over"
            )
            self._reason = str(self.error)
        if self.connected_at_s is None and self._reason == "":
            self._explain_by_tls()
        if not self._reason:
            vague = reason.value == _UNSPECIFIED
            text = "the broker or the network closed the connection" if vague else str(reason)
            self._reason = f"{self.endpoint.address}: {text}"

    def _explain_by_tls(self) -> None:
        """Set the reason where the broker ended TLS instead of answering.

        In TLS 1.3 the handshake is over when it refuses our certificate, or the lack of one.
        """
        sock, tls = self._socket, self.endpoint.tls
        failure = sock.failure if isinstance(sock, TlsSocket) else None
        if failure is not None and not isinstance(failure, ssl.SSLEOFError):
            self.error = self._tls_error(failure)
            self._reason = str(self.error)
        elif tls is not None and tls.certificate is None:
            self._reason = (
                f"the MQTT broker at {self.endpoint.address} closed the connection as soon as TLS "
                "stood: perhaps it takes only clients with a certificate"
            )
