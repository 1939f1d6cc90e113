"""The way from a session to its owner's bounded queue, in order and without loss."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from broker.session.connection import Delivery

_MAX_WAITING = 16


@dataclass(frozen=True)
class Connected:
    """A connection stands. State documents are to be published again, deliveries follow."""

    session_present: bool
    generation: int


@dataclass(frozen=True)
class Disconnected:
    """The connection is gone; the session connects again by itself."""

    reason: str


@dataclass(frozen=True)
class SessionFault:
    """Something needs the owner's attention; the session goes on trying."""

    error: Exception


SessionEvent = Connected | Disconnected | Delivery | SessionFault


class Inbox:
    """Hands events to the owner one at a time.

    While the owner's queue is full, its own events wait here (bounded: the latest are kept) and
    deliveries are refused, so that the broker keeps them.

    Args:
        events: only enqueues; returns False when the queue is full.
    """

    def __init__(self, events: Callable[[SessionEvent], bool]) -> None:
        self._events = events
        self._lock = threading.Lock()
        self._waiting: deque[SessionEvent] = deque(maxlen=_MAX_WAITING)
        self._refused: dict[int, float] = {}

    @property
    def waiting(self) -> bool:
        """Whether events wait for room."""
        return bool(self._waiting)

    def put(self, event: Connected | Disconnected | SessionFault) -> None:
        """Hand over an event, now or when there is room."""
        with self._lock:
            if isinstance(event, Connected):
                self._refused.clear()
            self._waiting.append(event)
            self._drain()

    def retry(self) -> None:
        """Offer again what waits."""
        with self._lock:
            self._drain()

    def deliver(self, delivery: Delivery) -> bool:
        """Offer a message; False when there was no room for it."""
        with self._lock:
            self._refused[delivery.mid] = time.monotonic()
            self._drain()
            taken = not self._waiting and self._events(delivery)
            if taken or delivery.mid == 0:
                del self._refused[delivery.mid]
            return taken

    def latest_refusal_s(self) -> float | None:
        """The latest time at which a message was refused that has not come again; None if none."""
        with self._lock:
            return max(self._refused.values(), default=None)

    def _drain(self) -> None:
        while self._waiting and self._events(self._waiting[0]):
            self._waiting.popleft()
