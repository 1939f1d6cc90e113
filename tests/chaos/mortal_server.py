"""The real server, which kills itself (SIGKILL) at the moments of a plan file.

A kill from outside cannot hit what takes microseconds, such as the gap between the journal and the
receipt. So the process runs ``rengo server`` with a look at the plan at each point it passes; the
kill itself is the kernel's, as any other.

    python -m tests.chaos.mortal_server CONFIG PLAN
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from broker.wire.messages import Order, Receipt
from broker.wire.topics import parse
from fl_server.aggregation.aggregator import RunAggregator
from fl_server.operations.mqtt import OperatorEndpoint
from fl_server.operations.requests import RequestLog
from fl_server.persistence.database import Transaction
from fl_server.persistence.journal import Journal
from fl_server.rounds.facts import EvaluationRecorded, RoundClosed, RoundCommitted, RoundStarted
from fl_server.rounds.facts import UpdateAccepted as Accepted
from fl_server.shell.connection import ServerConnection
from rengo.cli.main import main
from tests.chaos.moments import read_plan, write_plan

_BEFORE = {RoundStarted: "before-round", Accepted: "before-accept"}
_AFTER = {
    Accepted: "accepted",
    RoundClosed: "closed",
    RoundCommitted: "committed",
    EvaluationRecorded: "evaluated",
}


class Fate:
    """Counts the points that this life of the server passes and ends it where the plan says."""

    def __init__(self, plan: Path) -> None:
        self._plan = plan
        self._lock = threading.Lock()
        self._passed = 0
        self._dying = False

    def passes(self, point: str, round_number: int) -> None:
        """Look at the plan; does not return when this is the moment."""
        with self._lock:
            moments = read_plan(self._plan)
            due = moments and moments[0].point == point and round_number >= moments[0].round
            if not due or self._dying:
                return
            self._passed += 1
            if self._passed != moments[0].nth:
                return
            write_plan(self._plan, moments[1:])
            self._dying = True
            if not moments[0].delay_s:
                _die()
            threading.Timer(moments[0].delay_s, _die).start()

    def notes(self, topic: str, order: Order) -> None:
        """Keep an order to train that went out, for ``read_orders``."""
        line = json.dumps([parse(topic).id, order.model_dump_json()]) + "\n"
        with self._lock, _orders(self._plan).open("a") as out:
            out.write(line)


def read_orders(plan: Path) -> list[tuple[str, Order]]:
    """Return every order to train that any life of the server has sent, and to which device."""
    lines = (json.loads(line) for line in _orders(plan).read_text().splitlines())
    return [(device_id, Order.model_validate_json(order)) for device_id, order in lines]


def _orders(plan: Path) -> Path:
    return plan.with_suffix(".orders")


def _die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()  # until the signal is there
    raise AssertionError("survived SIGKILL")


def _around(owner: type, name: str, watch: Callable[..., Any]) -> None:
    """Let ``watch(*arguments)``, a context manager, surround a method."""
    method = getattr(owner, name)

    def watched(self: Any, *arguments: Any, **named: Any) -> Any:
        with watch(*arguments, **named):
            return method(self, *arguments, **named)

    setattr(owner, name, watched)


def bind(fate: Fate) -> None:
    """Put the looks at the plan into the server's classes."""

    @contextmanager
    def appending(_run: str, facts: Any) -> Iterator[None]:
        for fact in facts:
            if type(fact) in _BEFORE:
                fate.passes(_BEFORE[type(fact)], fact.round)
        yield
        for fact in facts:
            if type(fact) in _AFTER:
                fate.passes(_AFTER[type(fact)], fact.round)

    @contextmanager
    def publishing(topic: str, message: Any, *, retain: bool = False) -> Iterator[None]:
        yield
        if isinstance(message, Order) and message.action == "train":
            fate.notes(topic, message)
            fate.passes("ordered", message.round)
            fate.passes("ordered-and-later", message.round)
        if isinstance(message, Receipt) and message.action == "train":
            fate.passes("receipted", message.round)

    @contextmanager
    def verifying(submission: Any, *_: Any) -> Iterator[None]:
        fate.passes("verify-begins", submission.round)
        yield
        fate.passes("verify-ended", submission.round)

    @contextmanager
    def folding(submission: Any, *_: Any) -> Iterator[None]:
        fate.passes("fold-begins", submission.round)
        yield

    @contextmanager
    def aggregating(key: tuple[int, int], *_: Any) -> Iterator[None]:
        fate.passes("aggregate-begins", key[0])
        yield
        fate.passes("version-stored", key[0])

    @contextmanager
    def passing(before: str, after: str) -> Iterator[None]:
        if before:
            fate.passes(before, 0)
        yield
        if after:
            fate.passes(after, 0)

    _around(RequestLog, "find", lambda *_: passing("", "request-sought"))
    _around(RequestLog, "write", lambda *_: passing("", "request-written"))
    _around(Transaction, "__exit__", lambda *_: passing("", "transaction-ended"))
    _around(OperatorEndpoint, "_send", lambda *_: passing("before-reply", "replied"))
    _around(Journal, "append", appending)
    _around(ServerConnection, "publish", publishing)
    _around(RunAggregator, "verify", verifying)
    _around(RunAggregator, "fold", folding)
    _around(RunAggregator, "aggregate", aggregating)


if __name__ == "__main__":
    bind(Fate(Path(sys.argv[2])))
    sys.exit(main(["server", "--config", sys.argv[1]]))
