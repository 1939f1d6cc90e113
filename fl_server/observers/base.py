"""Observers are told of every fact after it was journalled. One that fails or is slow costs a run
nothing: each has a bounded queue and a thread of its own.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from broker.wire.messages import RunEvent

_LOG = logging.getLogger(__name__)
QUEUE_MAX = 65_536
_CLOSE_S = 2.0


@dataclass(frozen=True)
class ObservedFact:
    """A journalled fact.

    Attributes:
        flow: the kind of its run's flow.
        event: the fact as plain data, bounded to fit into a message.
    """

    flow: str
    fact: Any
    event: RunEvent


class Observer(Protocol):
    """Who watches runs; ``name`` is for the log."""

    name: str

    def observe(self, observed: ObservedFact) -> None:
        """Handle one fact. Called on the observer's own thread, in the order of the journal."""
        ...


class ObserverList:
    """The observers of one server.

    Attributes:
        failed: by observer, how many facts it raised on.
        missed: by observer, how many facts it never got because its queue was full.
    """

    def __init__(self, observers: Iterable[Observer], queue_max: int = QUEUE_MAX) -> None:
        self._threads = [_ObserverThread(each, queue_max) for each in observers]

    @property
    def failed(self) -> dict[str, int]:
        """How many facts each observer raised on."""
        return {each.observer.name: each.failed for each in self._threads}

    @property
    def missed(self) -> dict[str, int]:
        """How many facts each observer never got because its queue was full."""
        return {each.observer.name: each.missed for each in self._threads}

    def tell(self, observed: ObservedFact) -> None:
        """Tell every observer of a fact; never waits."""
        for each in self._threads:
            each.tell(observed)

    def close(self) -> None:
        """Let the observers handle what they were told, for a moment, and end."""
        for each in self._threads:
            each.end()
        for each in self._threads:
            each.thread.join(_CLOSE_S)
            if each.thread.is_alive():
                _LOG.warning("observer %s is left behind: it does not end", each.observer.name)


class _ObserverThread:
    def __init__(self, observer: Observer, queue_max: int) -> None:
        self.observer = observer
        self.failed = self.missed = 0
        self._queue: queue.Queue[ObservedFact | None] = queue.Queue(queue_max)
        # a daemon: an observer that blocks for ever must not hold the process
        self.thread = threading.Thread(
            target=self._run, name=f"observer-{observer.name}", daemon=True
        )
        self.thread.start()

    def tell(self, observed: ObservedFact) -> None:
        try:
            self._queue.put_nowait(observed)
        except queue.Full:
            self.missed += 1
            if self.missed == 1:
                _LOG.error("observer %s is too slow: it misses facts", self.observer.name)

    def end(self) -> None:
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            pass  # it is blocked, and its thread is a daemon

    def _run(self) -> None:
        while (observed := self._queue.get()) is not None:
            try:
                self.observer.observe(observed)
            except Exception:  # noqa: BLE001 (an observer may be anybody's code; a run goes on)
                self.failed += 1
                if self.failed == 1:
                    _LOG.exception("observer %s fails", self.observer.name)
