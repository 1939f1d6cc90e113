"""One MQTT connection, from TCP to its loss: a fresh paho client that is never used again.

A paho client that reconnects sends again what it still holds in memory, beside what the caller
sends again. So nothing outlives a connection here: what must not be lost is in the outbox.
"""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from runtime.errors import AuthenticationFailed, ConfigError, TransportError
from runtime.security.tls import Tls, tls_error

if TYPE_CHECKING:
    from runtime.security.identity import Identity

CONNECT_TIMEOUT_S = 5.0
_SESSION_EXPIRY_S = 30 * 24 * 3600
_MAX_INFLIGHT = 128
_MAX_QUEUED = 20_000
_CLOSE_GRACE_S = 1.0
_UNSPECIFIED = 0x80
_SESSION_TAKEN_OVER = 0x8E
_BAD_CREDENTIALS = (0x86, 0x87)
_CLIENT_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")


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
        next_password: what the broker may want instead by now, tried when it refuses the other.
        client_id: unique on the broker: letters, digits, ``_`` and ``-``.
        keepalive_s: a silent connection is given up after about 1.5 times this.
        protocol: the MQTT version.
        tls: whom to trust and what to show; None connects without TLS.
        persistent: the broker keeps subscriptions and queued messages between connections; False
            for a short-lived client, which then leaves nothing behind.

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
    next_password: str | None = field(default=None, repr=False)

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
        following = identity.next_password
        return cls(
            identity.host,
            identity.port,
            identity.id,
            identity.password.get_secret_value(),
            identity.client_id,
            tls=identity.trust,
            next_password=None if following is None else following.get_secret_value(),
        )

    def swapped(self) -> Endpoint:
        """Return the same with the two passwords changed places."""
        if self.next_password is None:
            return self
        return replace(self, password=self.next_password, next_password=self.password)

    @property
    def place(self) -> str:
        """Host and port, for messages."""
        return f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Publication:
    """A message to publish."""

    topic: str
    payload: bytes
    retain: bool = False
    qos: Literal[0, 1] = 1


@dataclass(frozen=True)
class Delivery:
    """A message from the broker. ``mid`` and ``generation`` identify it for its acknowledgement."""

    topic: str
    payload: bytes
    retain: bool
    mid: int
    generation: int


@dataclass(frozen=True)
class Hooks:
    """What a connection tells its session, on the network thread; none of it may block.

    Args:
        up: the broker accepted; with whether it knew the session.
        subscribed: the broker answered the subscriptions; from here on it queues for this client.
        delivery: a message, unacknowledged until ``Connection.ack``.
        answer: the message id of a publish, and why the broker refused it (None: it did not).
        fault: an error that must not end the thread.
        end: the thread is about to end.
    """

    up: Callable[[Connection, bool], None]
    subscribed: Callable[[], None]
    delivery: Callable[[Delivery], None]
    answer: Callable[[Connection, int, str | None], None]
    fault: Callable[[Exception], None]
    end: Callable[[], None]


class _TlsSocket(ssl.SSLSocket):
    """A socket that keeps what TLS failed with, which paho only logs, and leaks nothing."""

    failure: ssl.SSLError | None = None

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        try:
            return super().recv(buflen, flags)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            self.failure = error
            raise

    def send(self, data: Any, flags: int = 0) -> int:
        try:
            return super().send(data, flags)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except OSError as error:
            # the peer has gone, perhaps after it said why
            with contextlib.suppress(OSError):
                self.recv(1)
            self.failure = self.failure or (error if isinstance(error, ssl.SSLError) else None)
            raise


class _Client(mqtt.Client):
    """A paho client whose network thread cannot die unnoticed."""

    guard: Connection | None = None

    def loop_forever(self, *_: Any, **__: Any) -> MQTTErrorCode:
        guard = self.guard
        if guard is None:
            return MQTTErrorCode.MQTT_ERR_INVAL
        guard.began()
        try:
            return super().loop_forever(timeout=1.0, retry_first_connection=False)
        except Exception as error:  # noqa: BLE001 (the loop of the network thread)
            guard.crashed(error)
            return MQTTErrorCode.MQTT_ERR_UNKNOWN
        finally:
            guard.ended_loop()


class Connection:
    """One connection of a session.

    ``publish`` and ``ack`` may be called by any thread, ``open`` and ``close`` by the session's.

    Args:
        endpoint: where to connect.
        generation: grows with every connection of a session.
        subscriptions: MQTT filters, subscribed at QoS 1 as soon as the broker accepts.
        will: published by the broker when the connection is lost.
        hooks: the session.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        generation: int,
        subscriptions: Sequence[str],
        will: Publication | None,
        hooks: Hooks,
    ) -> None:
        self.endpoint = endpoint
        self.generation = generation
        self.up_at_s: float | None = None
        self.subscribed = not subscriptions
        self.error: TransportError | None = None
        self.answered = threading.Event()
        self.unanswered = 0  # publishes; guarded by the session
        self._subscriptions = tuple(subscriptions)
        self._hooks = hooks
        self._ended = threading.Event()
        self._network_thread: threading.Thread | None = None
        self._socket: socket.socket | None = None
        self._reason = ""
        self._client = self._build(will)

    def _build(self, will: Publication | None) -> _Client:
        endpoint = self.endpoint
        modern = endpoint.protocol == "5"
        client = _Client(
            CallbackAPIVersion.VERSION2,
            client_id=endpoint.client_id,
            clean_session=None if modern else not endpoint.persistent,
            protocol=mqtt.MQTTv5 if modern else mqtt.MQTTv311,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        client.guard = self
        client.username_pw_set(endpoint.username, endpoint.password)
        client.connect_timeout = CONNECT_TIMEOUT_S
        client.max_inflight_messages_set(_MAX_INFLIGHT)
        client.max_queued_messages_set(_MAX_QUEUED)
        if endpoint.tls is not None:
            context = endpoint.tls.context()
            context.sslsocket_class = _TlsSocket
            client.tls_set_context(context)
        if will is not None:
            client.will_set(will.topic, will.payload, qos=will.qos, retain=will.retain)
        # before connect: a handler set later misses what the broker sends at once
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
        """Connect the socket and start the network thread; ``Hooks.up`` follows.

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
            raise self._named(error) or TransportError(
                f"cannot reach the MQTT broker at {self.endpoint.place}: {error}"
            ) from error
        self._client.loop_start()

    def _named(self, error: BaseException | None) -> TransportError | None:
        if error is None:
            return None
        return tls_error(error, f"the MQTT broker at {self.endpoint.place}")

    def publish(self, publication: Publication) -> int | None:
        """Hand a message to the network thread; return its message id, None if it was not taken."""
        if self.ended or self.up_at_s is None:
            return None
        info = self._client.publish(
            publication.topic, publication.payload, publication.qos, publication.retain
        )
        # on NO_CONN paho queues the message all the same, in a client that nobody uses again
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
                    pass  # it was closed at this moment
            self._ended.wait(CONNECT_TIMEOUT_S)
        # not loop_stop, which fails when the thread ends at the same moment
        if self._network_thread is not None:
            self._network_thread.join()
        self._release()

    def _release(self) -> None:
        """Break the reference cycles, so that paho's sockets close now, not at some collection."""
        client = self._client
        client.on_socket_open = client.on_connect = client.on_subscribe = None
        client.on_message = client.on_publish = client.on_disconnect = None
        client.guard = None
        self._socket = None

    def began(self) -> None:
        """The network thread begins."""
        self._network_thread = threading.current_thread()

    def crashed(self, error: Exception) -> None:
        """The network thread failed in paho itself or in a guard."""
        self._reason = f"the network thread failed: {error!r}"
        self._hooks.fault(error)

    def ended_loop(self) -> None:
        """The network thread ends."""
        self.answered.set()
        self._ended.set()
        self._hooks.end()

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
                f"the MQTT broker at {self.endpoint.place} refused "
                f"user {self.endpoint.username!r}: {reason}"
            )
            self._reason = str(self.error)
            return
        # every time, session present or not: it brings retained documents afresh, and a broker
        # that lost its state learns the subscriptions again
        if self._subscriptions:
            client.subscribe([(each, 1) for each in self._subscriptions])
        self.up_at_s = time.monotonic()
        self._hooks.up(self, flags.session_present)
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
            self._hooks.fault(
                TransportError(
                    f"the broker refused {self.endpoint.username!r} the subscription to "
                    f"{', '.join(denied)}"
                )
            )
        self.subscribed = True
        self._hooks.subscribed()

    def _on_message(self, _client: mqtt.Client, _userdata: Any, message: mqtt.MQTTMessage) -> None:
        try:
            delivery = Delivery(
                message.topic,
                bytes(message.payload),
                bool(message.retain),
                message.mid if message.qos else 0,
                self.generation,
            )
            self._hooks.delivery(delivery)
        except Exception as error:  # noqa: BLE001 (it would kill paho's thread, unnoticed)
            self._hooks.fault(error)

    def _on_publish(
        self,
        _client: mqtt.Client,
        _userdata: Any,
        mid: int,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        self._hooks.answer(self, mid, str(reason) if reason.is_failure else None)

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
        if self.up_at_s is None and self._reason == "":
            self._refused_by_tls()
        if not self._reason:
            vague = reason.value == _UNSPECIFIED
            said = "the broker or the network closed the connection" if vague else str(reason)
            self._reason = f"{self.endpoint.place}: {said}"

    def _refused_by_tls(self) -> None:
        """Take the reason of a broker that ends TLS where its answer was due.

        Since TLS 1.3 the handshake is over when it refuses our certificate, or that we have none.
        """
        sock, tls = self._socket, self.endpoint.tls
        failure = sock.failure if isinstance(sock, _TlsSocket) else None
        if failure is not None and not isinstance(failure, ssl.SSLEOFError):
            self.error = self._named(failure)
            self._reason = str(self.error)
        elif tls is not None and tls.certificate is None:
            self._reason = (
                f"the MQTT broker at {self.endpoint.place} closed the connection as soon as TLS "
                "stood: perhaps it takes only clients with a certificate"
            )
