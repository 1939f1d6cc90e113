"""A lasting MQTT session over connections that come and go: the same for every role.

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

from broker.session.connection import (
    ClientIdInUse,
    Connection,
    Delivery,
    Endpoint,
    Hooks,
    Publication,
)
from broker.session.inbox import Connected, Disconnected, Inbox, SessionEvent, SessionFault
from broker.session.outbox import Outbox, OutboxRow, Until
from broker.session.resend import ResendQueue
from broker.wire.limits import MAX_MESSAGE_BYTES, MessageTooLarge, check_message
from runtime.errors import (
    AuthenticationFailed,
    InvalidTransition,
    RengoError,
    TransportError,
    UntrustedPeer,
)
from runtime.retry import Backoff

__all__ = [
    "MAX_MESSAGE_BYTES",
    "ClientIdInUse",
    "Connected",
    "Delivery",
    "Disconnected",
    "Endpoint",
    "MessageTooLarge",
    "MqttSession",
    "Publication",
    "SessionEvent",
    "SessionFault",
]

_LOG = logging.getLogger(__name__)
_CONNACK_TIMEOUT_S: Final = 10.0
_BACKOFF_FIRST_S: Final = 0.5
_BACKOFF_LONGEST_S: Final = 30.0
_RELOAD_S: Final = 0.25
_STABLE_S: Final = 10.0
_TWIN_AFTER: Final = 3
_TWIN_PAUSE_S: Final = 10.0
_INBOX_RETRY_S: Final = 0.1
_REDELIVER_AFTER_S: Final = 5.0
_FAREWELL_S: Final = 2.0
# what TCP, TLS and MQTT add to a message and its acknowledgement, roughly
_PACKET_BYTES: Final = 150


def _unmetered(count: int) -> None:
    del count


def _wire_bytes(message: Publication | Delivery) -> int:
    return len(message.topic) + len(message.payload) + _PACKET_BYTES


class MqttSession:
    """One identity's session with a broker.

    Args:
        endpoint: where and who.
        subscriptions: MQTT filters, subscribed again on every connection.
        events: takes an event, only enqueues, and returns False when the queue is full: a delivery
            is then left unacknowledged, so that the broker brings it again.
        will: what the broker publishes when this process dies or the network goes; a function is
            asked on the session's thread before each connection, so that a will can name its own.
        outbox: what :meth:`send` needs; the caller closes it after :meth:`stop`.
        resend_s: how long a message waits for :meth:`confirm` before it is sent again.
        meter: is told of the bytes of each message that comes or goes, on any thread.

    Raises:
        ConfigError, MessageTooLarge: the will is not publishable.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        subscriptions: Sequence[str],
        events: Callable[[SessionEvent], bool],
        *,
        will: Publication | Callable[[], Publication] | None = None,
        outbox: Outbox | None = None,
        resend_s: float = 10.0,
        meter: Callable[[int], None] = _unmetered,
    ) -> None:
        if isinstance(will, Publication):
            check_message(will.topic, will.payload)
        self.endpoint = endpoint
        self._subscriptions = tuple(subscriptions)
        self._inbox = Inbox(events)
        self._will = will
        self._meter = meter
        self._outbox = outbox
        self._replay = None if outbox is None else ResendQueue(outbox, resend_s)
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._changed = threading.Condition()  # guards what follows; never held while calling out
        self._swapped = False
        self._doubted = False
        self._up: Connection | None = None
        self._last_error: Exception | None = None
        self._answers: deque[tuple[int, str | None]] = deque()
        self._hooks = Hooks(
            up=self._on_up,
            subscribed=self._on_subscribed,
            delivery=self._on_delivery,
            answer=self._on_answer,
            fault=self._on_fault,
            end=self._wake.set,
        )
        # the session's thread only
        self._generation = 0
        self._backoff = Backoff(_BACKOFF_FIRST_S, _BACKOFF_LONGEST_S)
        self._short_lives = 0
        self._reported: type[Exception] | None = None

    # --- the owner's side -----------------------------------------------------------------------

    def use(self, endpoint: Endpoint) -> None:
        """Connect so from the next connection on; the one that stands stays."""
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
        """Whether a connection stands at this moment."""
        up = self._up
        return up is not None and not up.ended

    def wait_connected(self, timeout_s: float) -> None:
        """Return when a connection stands and the broker has answered the subscriptions.

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
                f"no MQTT connection to {self.endpoint.host}:{self.endpoint.port} "
                f"within {timeout_s:g} s: {self._last_error or 'no answer yet'}"
            )

    def publish(self, publication: Publication) -> bool:
        """Send now or never; False when there is no connection or too much is under way.

        What must not be lost goes by :meth:`send`; state is published again on Connected.

        Raises:
            ConfigError, MessageTooLarge: it is not publishable.
        """
        check_message(publication.topic, publication.payload)
        up = self._up
        return up is not None and self._publish(up, publication) is not None

    def send(
        self, key: str, topic: str, payload: bytes, *, retain: bool = False, until: Until
    ) -> None:
        """Store a message in the outbox and send it until it is answered; see ``Outbox.put``.

        Raises:
            OutboxError, OutboxFull, ConfigError, MessageTooLarge: as ``Outbox.put``.
        """
        self._durable().put(key, topic, payload, retain=retain, until=until)
        self._wake.set()

    def confirm(self, key: str) -> bool:
        """Take the receipt of a message sent ``until="confirm"``; whether it was pending."""
        return self._durable().confirm(key)

    def ack(self, delivery: Delivery) -> None:
        """Acknowledge a delivery once it is journalled.

        Does nothing when the connection that brought it is gone: the broker brings it again.
        """
        up = self._up
        if up is not None and delivery.mid and up.generation == delivery.generation:
            up.ack(delivery.mid)

    def flush(self, timeout_s: float) -> bool:
        """Wait until the broker has acknowledged everything; False when the time is over."""
        with self._changed:
            return self._changed.wait_for(self._settled, timeout_s)

    def stop(self, farewell: Publication | None = None) -> None:
        """Disconnect in order, after ``farewell``; the will is not sent. No event follows.

        Not to be called from ``events``.
        """
        if self._thread is None:
            return
        if farewell is not None and not self._stopping.is_set() and self.publish(farewell):
            with self._changed:
                self._changed.wait_for(
                    lambda: self._up is None or self._up.unanswered == 0, _FAREWELL_S
                )
        self._stopping.set()
        self._wake.set()
        self._thread.join()

    def _ready(self) -> bool:
        return self._up is not None and self._up.subscribed

    def _durable(self) -> Outbox:
        if self._outbox is None:
            raise InvalidTransition("this MQTT session was made without an outbox")
        return self._outbox

    def _settled(self) -> bool:
        up = self._up
        if up is None or up.unanswered or self._answers:
            return False
        return self._replay is None or self._replay.settled

    def _publish(self, up: Connection, publication: Publication) -> int | None:
        with self._changed:
            up.unanswered += 1  # first, since the answer may come before publish returns
        mid = up.publish(publication)
        if mid is not None:
            self._meter(_wire_bytes(publication))
        else:
            with self._changed:
                up.unanswered -= 1
                self._changed.notify_all()
        return mid

    # --- called by the connection's network thread ------------------------------------------------

    def _on_up(self, link: Connection, session_present: bool) -> None:
        with self._changed:
            self._up = link  # first, since the owner publishes its state on Connected
            self._swapped = self._doubted = False
            self._last_error = None
            self._changed.notify_all()
        self._inbox.put(Connected(session_present, link.generation))

    def _on_subscribed(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _on_delivery(self, delivery: Delivery) -> None:
        self._meter(_wire_bytes(delivery))
        if not self._inbox.deliver(delivery):
            self._wake.set()

    def _on_answer(self, link: Connection, mid: int, failure: str | None) -> None:
        if failure is not None:
            self._on_fault(TransportError(f"the broker refused a message: {failure}"))
        with self._changed:
            link.unanswered -= 1
            if self._replay is not None:
                self._answers.append((mid, failure))
            self._changed.notify_all()
        if self._replay is not None:
            self._wake.set()

    def _on_fault(self, error: Exception) -> None:
        try:
            self._inbox.put(SessionFault(error))
        except Exception:  # noqa: BLE001 (the owner's queue itself failed; this thread must live)
            _LOG.exception("the event queue of %s failed", self.endpoint.client_id)

    # --- the session's thread ---------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._generation += 1
            try:
                self._live()
            except TransportError as error:
                self._failed(error)
            except Exception as error:  # noqa: BLE001 (the shell loop: reported, then tried again)
                self._failed(error)
                self._report(error)
            if not self._stopping.is_set():
                self._stopping.wait(self._pause_s())

    def _live(self) -> None:
        will = self._will() if callable(self._will) else self._will
        link = Connection(self.endpoint, self._generation, self._subscriptions, will, self._hooks)
        link.open()
        lost = False
        try:
            if not link.answered.wait(_CONNACK_TIMEOUT_S):
                raise TransportError("the MQTT broker accepted the socket but not the session")
            if link.up_at_s is not None:
                self._serve(link)
            lost = link.ended
        except RengoError as error:
            link.close(str(error))
            raise
        finally:
            link.close("stopped")
            if link.up_at_s is not None:
                self._down(link, time.monotonic() - link.up_at_s, lost=lost)
        if link.up_at_s is None:
            raise link.error or TransportError(link.reason)

    def _serve(self, link: Connection) -> None:
        if self._replay is not None:
            self._replay.reset()
        while not self._stopping.is_set() and not link.ended:
            self._wake.clear()
            self._inbox.retry()
            now_s = time.monotonic()
            if self._replay is not None:
                self._take_answers(self._replay, now_s)
                self._replay.pump(lambda row: self._send_row(link, row), now_s)
                if self._replay.stalled(now_s):
                    raise TransportError("the broker stopped acknowledging; connecting again")
            refused_s = self._inbox.latest_refusal_s()
            if refused_s is not None and now_s - refused_s > _REDELIVER_AFTER_S:
                # some brokers bring an unacknowledged message again only on a new connection
                raise TransportError("connecting again for messages that found the queue full")
            with self._changed:
                self._changed.notify_all()
            self._wake.wait(self._patience_s(now_s, refused_s))

    def _patience_s(self, now_s: float, refused_s: float | None) -> float | None:
        due = [] if self._replay is None else [self._replay.next_due_s()]
        due.append(None if refused_s is None else refused_s + _REDELIVER_AFTER_S)
        due.append(now_s + _INBOX_RETRY_S if self._inbox.waiting else None)
        soonest = min((each for each in due if each is not None), default=None)
        return None if soonest is None else max(0.0, soonest - now_s) + 0.01

    def _take_answers(self, replay: ResendQueue, now_s: float) -> None:
        taken = []
        while self._answers:
            mid, failure = self._answers[0]
            if failure is None:
                taken.append(mid)
            else:
                replay.refused(mid, now_s)
            self._answers.popleft()
        replay.acknowledged(taken, now_s)

    def _send_row(self, link: Connection, row: OutboxRow) -> int | None:
        return self._publish(link, Publication(row.topic, row.payload, row.retain))

    def _down(self, link: Connection, lived_s: float, *, lost: bool) -> None:
        with self._changed:
            self._up = None
            self._last_error = TransportError(link.reason)
            self._changed.notify_all()
        if self._replay is not None:
            self._take_answers(self._replay, time.monotonic())
        if self._stopping.is_set():
            return
        self._inbox.put(Disconnected(link.reason))
        if lived_s >= _STABLE_S:
            self._backoff.reset()
            self._short_lives = 0
            self._reported = None
        elif lost:
            self._short_lives += 1
        if isinstance(link.error, ClientIdInUse) or self._short_lives >= _TWIN_AFTER:
            self._report(
                ClientIdInUse(
                    f"connections of client id {self.endpoint.client_id!r} end soon after they "
                    "stand: most likely another process uses the same identity; stop one of them"
                )
            )

    def _failed(self, error: Exception) -> None:
        refused = isinstance(error, AuthenticationFailed)
        with self._changed:
            swapped = self.endpoint.swapped()
            if refused and swapped != self.endpoint and not self._swapped:
                # the broker may have learnt the other password meanwhile
                self.endpoint, self._swapped = swapped, True
                return
            self._swapped = False
            if refused and not self._doubted and not isinstance(error, UntrustedPeer):
                # a broker that reads its users anew refuses who comes in that moment
                self._doubted = True
                return
            self._last_error = error
            self._changed.notify_all()
        if refused:
            self._report(error)
        elif self._backoff.attempts == 0:
            _LOG.info("%s; trying again", error)

    def _report(self, error: Exception) -> None:
        """Raise a fault once for a series of the same kind."""
        if self._reported is not type(error):
            self._reported = type(error)
            self._on_fault(error)

    def _pause_s(self) -> float:
        """Return how long to wait before the next attempt: exponential with full jitter."""
        pause_s = self._backoff.next_s()
        if self._doubted:
            pause_s += _RELOAD_S
        if self._reported is not None:
            pause_s += _TWIN_PAUSE_S  # neither a twin nor a refused password mends itself quickly
        return pause_s
