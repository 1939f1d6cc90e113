"""The real agent, which kills itself (SIGKILL) at a moment that it is told.

    python -m tests.chaos.mortal_agent start:N|order:N|after:S client …

It dies at the N-th thing that it does to its files since its start or since its first order, or S
seconds after that order, wherever its training is then. The kill itself is the kernel's.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

from broker.session.outbox import Outbox
from fl_client.jobs.journal import JobJournal
from fl_client.session.events import OrderArrived
from fl_client.session.machine import DeviceSession
from rengo.cli.main import main

_METHODS = ((Outbox, ("put", "_delete")), (JobJournal, ("store", "remove")))
_WRITING = os.O_WRONLY | os.O_RDWR


class Fate:
    """Counts what this life does to its files, and ends it."""

    def __init__(self, moment: str, folder: str) -> None:
        self._since, _, when = moment.partition(":")
        self._when = float(when)
        self._folder = folder
        self._passed = 0
        self._counting = self._since == "start"

    def passes(self) -> None:
        if self._counting:
            self._passed += 1
            if self._passed == self._when:
                _die()

    def ordered(self) -> None:
        if self._since == "order":
            self._counting = True
        elif self._since == "after":
            self._since = ""
            timer = threading.Timer(self._when, _die)
            timer.daemon = True
            timer.start()

    def hears(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Take an event of the interpreter's audit."""
        if event == "open":
            writes = isinstance(arguments[2], int) and arguments[2] & _WRITING
            ours = isinstance(arguments[0], str) and arguments[0].startswith(self._folder)
            if writes and ours:
                self.passes()
        elif event in {"os.rename", "os.remove"}:
            self.passes()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def bind(fate: Fate) -> None:
    """Put the looks at the fate into the agent."""
    for owner, names in _METHODS:
        for name in names:
            _around(owner, name, fate)
    handle = DeviceSession.handle

    def handled(self: DeviceSession, event: Any) -> Any:
        if isinstance(event, OrderArrived):
            fate.ordered()
        return handle(self, event)

    DeviceSession.handle = handled  # type: ignore[method-assign]
    sys.addaudithook(fate.hears)


def _around(owner: type, name: str, fate: Fate) -> None:
    method = getattr(owner, name)

    def watched(self: Any, *arguments: Any, **named: Any) -> Any:
        fate.passes()
        result = method(self, *arguments, **named)
        fate.passes()
        return result

    setattr(owner, name, watched)


if __name__ == "__main__":
    words = sys.argv[2:]
    if sys.argv[1]:
        bind(Fate(sys.argv[1], words[words.index("--data-dir") + 1]))
    sys.exit(main(words))
