"""How long work on bytes waits for the store or the disk, and who sees what it waits for.

An absent store costs time only: work is tried again until it is back. An error that comes back the
same for one object, while the store serves others, is damage: no waiting mends it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from runtime.backoff import Backoff
from runtime.errors import AccessDenied, Damaged, Unavailable

_LOG = logging.getLogger(__name__)
T = TypeVar("T")

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
_SAME_ERRORS, _SURE_S = 3, 5.0
_LOG_EVERY_S = 60.0


@dataclass(frozen=True)
class Waiting:
    """What work waits for: the error's text, and since when, as Unix time."""

    reason: str
    since_s: float


class Patience:
    """Tries work again; ``stopping`` ends every wait.

    Args:
        serves: whether the store serves other objects now.
    """

    def __init__(self, stopping: threading.Event, serves: Callable[[], bool]) -> None:
        self._stopping = stopping
        self._serves = serves
        self._lock = threading.Lock()
        # by the work that waits: whose it is, and for what
        self._waiting: dict[int, tuple[str, Waiting]] = {}

    def waiting(self, run_id: str) -> Waiting | None:
        """Return what a run's work waits for, the longest wait first; None where none does."""
        with self._lock:
            found = [each for owner, each in self._waiting.values() if owner == run_id]
        return min(found, key=lambda each: each.since_s, default=None)

    def until_done(self, work: Callable[[], T], run_id: str) -> T:
        """Return what ``work`` returns, once the store and the disk let it.

        Args:
            run_id: whose work it is, "" for that of no run.

        Raises:
            Damaged: it fails alone, and always in the same way.
            Unavailable, AccessDenied, OSError: the server stops.
        """
        attempt = _Attempts()
        backoff = Backoff(_FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        try:
            while True:
                try:
                    return work()
                except (Unavailable, AccessDenied, OSError) as error:
                    if self._stopping.is_set():
                        raise
                    attempt.failed(error)
                    self._note(attempt, run_id)
                    if attempt.looks_damaged and self._serves():
                        text = f"{error}, while the store serves other objects"
                        raise Damaged(text) from error
                self._stopping.wait(backoff.next_s())
        finally:
            with self._lock:
                self._waiting.pop(id(attempt), None)

    def _note(self, attempt: _Attempts, run_id: str) -> None:
        if attempt.is_news:
            whose = f" ({run_id})" if run_id else ""
            _LOG.warning("waiting for the store or the disk%s: %s", whose, attempt.text)
        with self._lock:
            self._waiting[id(attempt)] = (run_id, Waiting(attempt.text, attempt.since_s))


class _Attempts:
    """The failures of one piece of work."""

    def __init__(self) -> None:
        self.text = ""
        self.since_s = time.time()
        self.is_news = False
        self._is_store = False
        self._same = 0
        self._same_since_s = 0.0
        self._logged_s = 0.0

    def failed(self, error: Exception) -> None:
        """Count a failure."""
        now_s, text = time.monotonic(), str(error)
        if text != self.text:
            self.text, self._same, self._same_since_s = text, 0, now_s
        self._same += 1
        self._is_store = not isinstance(error, OSError)
        self.is_news = self._same == 1 or now_s - self._logged_s >= _LOG_EVERY_S
        if self.is_news:
            self._logged_s = now_s

    @property
    def looks_damaged(self) -> bool:
        """Whether the store has given the same answer several times, over some seconds."""
        waited_s = time.monotonic() - self._same_since_s
        return self._is_store and self._same >= _SAME_ERRORS and waited_s >= _SURE_S
