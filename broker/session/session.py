"""An MQTT session that outlives its connections: the same for every role.

Threads: the owner calls the public methods from any thread of its own and gets events on its
queue; one thread of the session connects, sends the outbox and watches; one per connection, which
belongs to paho, reads the socket and only enqueues.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from broker.session.connection import Connection, ConnectionCallbacks
from broker.session.endpoint import Endpoint, Unanswered
from broker.session.inbox import Connected, Disconnected, SessionEvent, SessionFault, SessionInbox
from broker.session.outbox import Outbox, OutboxRow, Until
from broker.session.publication import Delivery, Publication
from broker.session.reconnect import NextAttempt, ReconnectPolicy
from broker.session.resend import ResendQueue
from broker.wire.limits import check_message
from runtime.errors import AuthenticationFailed, InvalidTransition, RengoError, TransportError

_LOG = logging.getLogger(__name__)
_CONNACK_TIMEOUT_S: Final = 10.0
_INBOX_RETRY_S: Final = 0.1
_REDELIVER_AFTER_S: Final = 5.0
_FAREWELL_S: Final = 2.0
# what TCP, TLS and MQTT add to a message and its acknowledgement, roughly
_PACKET_BYTES: Final = 150


def _count_nothing(_: int) -> None:
    """Do not count the bytes."""


def _wire_bytes(message: Publication | Delivery) -> int:
    return len(message.topic) + len(message.payload) + _PACKET_BYTES


class MqttSession:
    """One identity's session with a broker.

    Args:
        endpoint: where the broker is and who connects.
        subscriptions: MQTT filters, subscribed again on every connection.
        enqueue: puts an event into the owner's queue without blocking, and returns False when it is
            full: a delivery then stays unacknowledged, so that the broker sends it again.
        will: what the broker publishes when this process dies or the network fails; a function is
            called on the session's thread before each connection, so that a will can name it.
        outbox: for :meth:`publish_durably`; the caller closes it after :meth:`stop`.
        resend_s: how long a message waits for :meth:`confirm` before it is sent again.
        count_bytes: called with the bytes of each message that comes or goes, on any thread.

    Raises:
        ConfigError, MessageTooLarge: the will is not publishable.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        subscriptions: Sequence[str],
        enqueue: Callable[[SessionEvent], bool],
        *,
        will: Publication | Callable[[], Publication] | None = None,
        outbox: Outbox | None = None,
        resend_s: float = 10.0,
        count_bytes: Callable[[int], None] = _count_nothing,
    ) -> None:
        if isinstance(will, Publication):
            check_message(will.topic, will.payload)
        self.endpoint = endpoint
        self._subscriptions = tuple(subscriptions)
        self._inbox = SessionInbox(enqueue)
        self._will = will
        self._count_bytes = count_bytes
        self._outbox = outbox
        self._resend = None if outbox is None else ResendQueue(outbox, resend_s)
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._changed = threading.Condition()  # guards what follows; never held while calling out
        self._connection: Connection | None = None
        self._last_error: Exception | None = None
        self._answers: deque[tuple[int, str | None]] = deque()
        self._callbacks = ConnectionCallbacks(
            connected=self._on_connected,
            subscribed=self._on_subscribed,
            received=self._on_received,
            answered=self._on_answered,
            failed=self._on_failed,
            ended=self._wake.set,
        )
        # the session's thread only
        self._generation = 0
        self._policy = ReconnectPolicy(endpoint.client_id)

    # --- the owner's side -----------------------------------------------------------------------

    def set_endpoint(self, endpoint: Endpoint) -> None:
        """Use another endpoint from the next connection on; the present one stays."""
        with self._changed:
            self.endpoint = endpoint

    def start(self) -> None:
        """Connect in the background, for as long as it takes; returns at once."""
        if self._thread is not None:
            raise InvalidTransition("an MQTT session starts once")
        name = f"mqtt-{self.endpoint.client_id}"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def connected(self) -> bool:
        """Whether there is a connection at this moment."""
        connection = self._connection
        return connection is not None and not connection.ended

    def wait_connected(self, timeout_s: float) -> None:
        """Return when the broker has accepted a connection and answered the subscriptions.

        Raises:
            AuthenticationFailed: the broker refused the credentials.
            TransportError: no connection within the time; says why the last attempt failed.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._ready() or isinstance(self._last_error, AuthenticationFailed),
                timeout_s,
            )
            if self._ready():
                return
            if isinstance(self._last_error, AuthenticationFailed):
                raise self._last_error
            raise TransportError(
                f"no MQTT connection to {self.endpoint.address} "
                f"within {timeout_s:g} s: {self._last_error or 'no answer yet'}"
            )

    def publish(self, publication: Publication) -> bool:
        """Send now or never; False when there is no connection or too much is unacknowledged.

        For what must not be lost there is :meth:`publish_durably`; state is published again on
        Connected.

        Raises:
            ConfigError, MessageTooLarge: it is not publishable.
        """
        check_message(publication.topic, publication.payload)
        connection = self._connection
        return connection is not None and self._publish(connection, publication) is not None

    def publish_durably(
        self, key: str, topic: str, payload: bytes, *, retain: bool = False, until: Until
    ) -> None:
        """Store a message in the outbox and send it until it is answered, as ``Outbox.put`` says.

        Raises:
            OutboxError, OutboxFull, ConfigError, MessageTooLarge: as ``Outbox.put``.
        """
        self._require_outbox().put(key, topic, payload, retain=retain, until=until)
        self._wake.set()

    def confirm(self, key: str) -> bool:
        """Remove a message that was stored ``until="confirm"``; return whether it was pending."""
        return self._require_outbox().confirm(key)

    def ack(self, delivery: Delivery) -> None:
        """Acknowledge a delivery once it is journalled.

        Does nothing when the connection of the delivery has ended: the broker sends it again.
        """
        connection = self._connection
        if connection is not None and connection.generation == delivery.generation and delivery.mid:
            connection.ack(delivery.mid)

    def flush(self, timeout_s: float) -> bool:
        """Wait until the broker has acknowledged everything; False when the time is over."""
        with self._changed:
            return self._changed.wait_for(self._all_acknowledged, timeout_s)

    def stop(self, farewell: Publication | None = None) -> None:
        """Disconnect in order, after ``farewell``; the will is not sent. No event follows.

        Not to be called from ``enqueue``.
        """
        if self._thread is None:
            return
        if farewell is not None and not self._stopping.is_set() and self.publish(farewell):
            with self._changed:
                self._changed.wait_for(
                    lambda: self._connection is None or self._connection.unanswered == 0,
                    _FAREWELL_S,
                )
        self._stopping.set()
        self._wake.set()
        self._thread.join()

    def _ready(self) -> bool:
        return self._connection is not None and self._connection.subscribed

    def _require_outbox(self) -> Outbox:
        if self._outbox is None:
            raise InvalidTransition("this MQTT session was made without an outbox")
        return self._outbox

    def _all_acknowledged(self) -> bool:
        connection = self._connection
        if connection is None or connection.unanswered or self._answers:
            return False
        return self._resend is None or self._resend.all_acknowledged

    def _publish(self, connection: Connection, publication: Publication) -> int | None:
        with self._changed:
            connection.unanswered += 1  # first: the answer may come before publish returns
        mid = connection.publish(publication)
        if mid is not None:
            self._count_bytes(_wire_bytes(publication))
        else:
            with self._changed:
                connection.unanswered -= 1
                self._changed.notify_all()
        return mid

    # --- called by the connection's network thread ------------------------------------------------

    def _on_connected(self, connection: Connection, session_present: bool) -> None:
        with self._changed:
            self._connection = connection  # first: the owner publishes its state on Connected
            self._last_error = None
            self._changed.notify_all()
        password = connection.endpoint.password
        self._inbox.put(Connected(session_present, connection.generation, password))

    def _on_subscribed(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _on_received(self, delivery: Delivery) -> None:
        self._count_bytes(_wire_bytes(delivery))
        if not self._inbox.deliver(delivery):
            self._wake.set()

    def _on_answered(self, connection: Connection, mid: int, failure: str | None) -> None:
        if failure is not None:
            self._on_failed(TransportError(f"the broker refused a message: {failure}"))
        with self._changed:
            connection.unanswered -= 1
            if self._resend is not None:
                self._answers.append((mid, failure))
            self._changed.notify_all()
        if self._resend is not None:
            self._wake.set()

    def _on_failed(self, error: Exception) -> None:
        try:
            self._inbox.put(SessionFault(error))
        except Exception:  # noqa: BLE001 (the owner's queue itself failed; this thread must live)
            _LOG.exception("the event queue of %s failed", self.endpoint.client_id)

    # --- the session's thread ---------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._generation += 1
            try:
                self._connect_and_serve()
            except TransportError as error:
                self._handle_failure(error)
            except Exception as error:  # noqa: BLE001 (the shell loop: reported, then tried again)
                self._handle_failure(error)
                self._report(error)
            if not self._stopping.is_set():
                self._stopping.wait(self._policy.next_delay_s())

    def _connect_and_serve(self) -> None:
        will = self._will() if callable(self._will) else self._will
        connection = Connection(
            self.endpoint, self._generation, self._subscriptions, will, self._callbacks
        )
        connection.open()
        lost = False
        try:
            if not connection.answered.wait(_CONNACK_TIMEOUT_S):
                raise TransportError("the MQTT broker accepted the socket but not the session")
            if connection.connected_at_s is not None:
                self._policy.connected()
                self._serve(connection)
            lost = connection.ended
        except RengoError as error:
            connection.close(str(error))
            raise
        finally:
            connection.close("stopped")
            if connection.connected_at_s is not None:
                lived_s = time.monotonic() - connection.connected_at_s
                self._handle_end(connection, lived_s, lost=lost)
        if connection.connected_at_s is None:
            raise connection.error or Unanswered(connection.reason)

    def _serve(self, connection: Connection) -> None:
        if self._resend is not None:
            self._resend.reset()
        while not self._stopping.is_set() and not connection.ended:
            self._wake.clear()
            self._inbox.retry()
            now_s = time.monotonic()
            if self._resend is not None:
                self._pass_answers(self._resend, now_s)
                self._resend.send_due(lambda row: self._send_row(connection, row), now_s)
                if self._resend.stalled(now_s):
                    raise TransportError("the broker stopped acknowledging; connecting again")
            refused_s = self._inbox.latest_refusal_s()
            if refused_s is not None and now_s - refused_s > _REDELIVER_AFTER_S:
                # some brokers send an unacknowledged message again only on a new connection
                raise TransportError("connecting again for messages that found the queue full")
            with self._changed:
                self._changed.notify_all()
            self._wake.wait(self._time_to_next_task_s(now_s, refused_s))

    def _time_to_next_task_s(self, now_s: float, refused_s: float | None) -> float | None:
        due = [] if self._resend is None else [self._resend.next_due_s()]
        due.append(None if refused_s is None else refused_s + _REDELIVER_AFTER_S)
        due.append(now_s + _INBOX_RETRY_S if self._inbox.waiting else None)
        soonest = min((each for each in due if each is not None), default=None)
        return None if soonest is None else max(0.0, soonest - now_s) + 0.01

    def _pass_answers(self, resend: ResendQueue, now_s: float) -> None:
        """Give the broker's answers to the resend queue."""
        acknowledged = []
        while self._answers:
            mid, failure = self._answers[0]
            if failure is None:
                acknowledged.append(mid)
            else:
                resend.handle_refused(mid, now_s)
            self._answers.popleft()
        resend.handle_acknowledged(acknowledged, now_s)

    def _send_row(self, connection: Connection, row: OutboxRow) -> int | None:
        return self._publish(connection, Publication(row.topic, row.payload, row.retain))

    def _handle_end(self, connection: Connection, lived_s: float, *, lost: bool) -> None:
        with self._changed:
            self._connection = None
            self._last_error = TransportError(connection.reason)
            self._changed.notify_all()
        if self._resend is not None:
            self._pass_answers(self._resend, time.monotonic())
        if self._stopping.is_set():
            return
        self._inbox.put(Disconnected(connection.reason))
        fault = self._policy.connection_ended(lived_s, connection.error, lost=lost)
        if fault is not None:
            self._report(fault)

    def _handle_failure(self, error: Exception) -> None:
        with self._changed:
            others = len(self.endpoint.other_passwords)
            following = self._policy.attempt_failed(error, other_passwords=others)
            if following is NextAttempt.OTHER_PASSWORD:
                self.endpoint = self.endpoint.with_following_password()
            if following is not NextAttempt.REPORT:
                return
            self._last_error = error
            self._changed.notify_all()
        if isinstance(error, AuthenticationFailed):
            self._report(error)
        elif self._policy.first_attempt:
            _LOG.info("%s; trying again", error)

    def _report(self, error: Exception) -> None:
        if self._policy.is_new(error):
            self._on_failed(error)
