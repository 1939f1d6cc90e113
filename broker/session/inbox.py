"""Hands a session's events to its owner's bounded queue, in order and without loss."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from broker.session.publication import Delivery

_MAX_WAITING = 16


@dataclass(frozen=True)
class Connected:
    """The broker accepted. State documents are to be published again; deliveries follow.

    ``password`` is the one that was accepted; the session may have taken another since.
    """

    session_present: bool
    generation: int
    password: str = field(default="", repr=False)


@dataclass(frozen=True)
class Disconnected:
    """The connection has ended; the session connects again by itself."""

    reason: str


@dataclass(frozen=True)
class SessionFault:
    """An error for the owner; the session goes on trying."""

    error: Exception


SessionEvent = Connected | Disconnected | Delivery | SessionFault


class SessionInbox:
    """Hands events to the owner one at a time.

    While the owner's queue is full, the session's own events wait here (bounded: the latest stay)
    and deliveries are refused, so that they stay with the broker.

    Args:
        enqueue: puts an event into the owner's queue without blocking; False when it is full.
    """

    def __init__(self, enqueue: Callable[[SessionEvent], bool]) -> None:
        self._enqueue = enqueue
        self._lock = threading.Lock()
        self._waiting: deque[SessionEvent] = deque(maxlen=_MAX_WAITING)
        self._refused: dict[int, float] = {}

    @property
    def waiting(self) -> bool:
        """Whether events wait for space in the queue."""
        return bool(self._waiting)

    def put(self, event: Connected | Disconnected | SessionFault) -> None:
        """Hand over an event, now or when the queue has space."""
        with self._lock:
            if isinstance(event, Connected):
                self._refused.clear()
            self._waiting.append(event)
            self._drain()

    def retry(self) -> None:
        """Offer the waiting events again."""
        with self._lock:
            self._drain()

    def deliver(self, delivery: Delivery) -> bool:
        """Offer a message; False when the queue had no space for it."""
        with self._lock:
            self._refused[delivery.mid] = time.monotonic()
            self._drain()
            accepted = not self._waiting and self._enqueue(delivery)
            if accepted or delivery.mid == 0:
                del self._refused[delivery.mid]
            return accepted

    def latest_refusal_s(self) -> float | None:
        """Return when the last refusal was of a message that has not come again; None if none."""
        with self._lock:
            return max(self._refused.values(), default=None)

    def _drain(self) -> None:
        while self._waiting and self._enqueue(self._waiting[0]):
            self._waiting.popleft()
