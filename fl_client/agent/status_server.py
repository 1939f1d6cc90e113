"""The agent's desk: what a person or a service manager at this machine is told, and may ask.

A thread waits at the Unix socket ``agent.sock`` of the data folder; a question goes through the
agent's inbox and is answered by its owner thread, so that an agent that hangs does not answer and
one that answers does not hang. Nothing is written to the disk.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import queue
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from fl_client.session.events import JobKey
from runtime.errors import TransportError
from runtime.processes.environments import TRIAL_S, UpdateTrial, this_environment
from runtime.processes.memory import freeze_heap
from runtime.processes.notify import Notifier
from runtime.processes.rss import rss_bytes
from runtime.processes.unix_socket import UnixSocketServer

_LOG = logging.getLogger(__name__)
SOCKET = "agent.sock"
_READY_ANYWAY_S = 10.0
_LOST = "`rengo agent status` gets no answers any more"
_ANSWER_S = 10.0
_QUESTION_BYTES = 64
_VISITORS = 4
_KEPT = 10

PendingDownload = Literal["status", "hold", "release", "restart"]


@dataclass(frozen=True)
class Question:
    """Somebody at this machine asks; ``answer`` takes the document, on any thread."""

    what: PendingDownload
    visitor: int
    answer: Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class _Noted:
    at_s: float
    what: dict[str, Any]


@dataclass
class _ConnectionHistory:
    """What happened lately, in memory alone; times are monotonic and told as ages."""

    rounds: deque[_Noted] = field(default_factory=lambda: deque(maxlen=_KEPT))
    declines: deque[_Noted] = field(default_factory=lambda: deque(maxlen=_KEPT))
    begun_s: float = field(default_factory=time.monotonic)
    link_s: float = field(default_factory=time.monotonic)
    connected: bool = False
    trouble: str = "not connected yet"

    def as_dict(self) -> dict[str, Any]:
        now_s = time.monotonic()

        def aged(kept: deque[_Noted]) -> list[dict[str, Any]]:
            return [{**each.what, "ago_s": round(now_s - each.at_s, 1)} for each in reversed(kept)]

        return {
            "up_s": round(now_s - self.begun_s, 1),
            "connection": {
                "connected": self.connected,
                "for_s": round(now_s - self.link_s, 1),
                "trouble": self.trouble,
            },
            "rounds": aged(self.rounds),
            "declines": aged(self.declines),
        }


class StatusServer:
    """Everything but ``open`` belongs to the agent's owner thread.

    Args:
        notifier: the service manager.
        trial: this installation is tried; it is taken for good once the broker was reached.
    """

    def __init__(self, notifier: Notifier | None = None, trial: UpdateTrial | None = None) -> None:
        self._notifier = Notifier() if notifier is None else notifier
        self._trial = trial
        self._diary = _ConnectionHistory()
        self._ready = False
        self._beat_s = 0.0
        self._holders: set[int] = set()
        self._store = ""
        self._counter: _Counter | None = None

    # --- life -----------------------------------------------------------------------------------

    def open(self, folder: Path, post: Callable[[object], None]) -> None:
        """Answer from now on; without a socket where none can be made, which is logged."""
        try:
            self._counter = _Counter(folder, post)
        except OSError as error:
            _LOG.warning("no status for `rengo agent status`: %s", error)

    def close(self) -> None:
        """The agent stops."""
        self._notifier.stopping()
        if self._counter is not None:
            self._counter.close()

    def turned(self, now_s: float) -> None:
        """The owner thread has come round once more.

        Raises:
            TransportError: the trial of this installation has failed.
        """
        every_s = self._notifier.beat_every_s
        if every_s is not None and now_s >= self._beat_s:
            self._notifier.alive()
            self._beat_s = now_s + every_s
        if self._trial is not None and now_s >= self._diary.begun_s + TRIAL_S:
            raise TransportError(
                f"this new installation did not reach the broker within {TRIAL_S:.0f} s; "
                "the earlier one comes back"
            )
        if not self._ready and self._trial is None and self._ready_left_s(now_s) == 0:
            self._say_ready("serves without a connection")

    def left_s(self, now_s: float) -> float | None:
        """Return how long until something is due, None when nothing is."""
        waits = []
        if self._notifier.beat_every_s is not None:
            waits.append(max(0.0, self._beat_s - now_s))
        if self._trial is not None:
            waits.append(max(0.0, self._diary.begun_s + TRIAL_S - now_s))
        elif not self._ready:
            waits.append(self._ready_left_s(now_s))
        return min(waits, default=None)

    def _ready_left_s(self, now_s: float) -> float:
        return max(0.0, self._diary.begun_s + _READY_ANYWAY_S - now_s)

    def _say_ready(self, status: str) -> None:
        self._ready = True
        self._notifier.ready(status)
        freeze_heap()

    # --- what the agent tells -------------------------------------------------------------------

    def connected(self, place: str) -> None:
        """The broker has let this device in."""
        diary = self._diary
        diary.connected, diary.trouble, diary.link_s = True, "", time.monotonic()
        if self._trial is not None:
            self._trial.commit()
            self._trial = None
            _LOG.info("this installation has proved itself: %s", this_environment())
        if self._ready:
            self._notifier.status(f"connected to {place}")
        else:
            self._say_ready(f"connected to {place}")

    def disconnected(self, reason: str) -> None:
        """The connection has gone, or none could be made."""
        diary = self._diary
        if diary.connected:
            diary.link_s = time.monotonic()
            self._notifier.status(f"not connected: {reason}")
        diary.connected, diary.trouble = False, reason

    def faulted(self, reason: str) -> None:
        """Something went wrong with the session; without a connection, that is why."""
        if not self._diary.connected:
            self.disconnected(reason)

    def store_at(self, url: str) -> None:
        """The object store is where this URL leads."""
        place = urlsplit(url.partition("?")[0])
        self._store = f"{place.scheme}://{place.netloc}"

    def declined(self, key: JobKey, reason: str) -> None:
        """An order was not taken."""
        self._note(self._diary.declines, key, {"reason": reason})

    def ended(self, key: JobKey, **how: object) -> None:
        """A job has come to its end."""
        self._note(self._diary.rounds, key, how)

    @staticmethod
    def _note(kept: deque[_Noted], key: JobKey, more: dict[str, Any]) -> None:
        what = {"run": key.run_id, "action": key.action, "round": key.round, **more}
        kept.append(_Noted(time.monotonic(), what))

    # --- what is asked --------------------------------------------------------------------------

    @property
    def held(self) -> str:
        """Why no order is taken now, "" when nothing keeps the agent."""
        return "this device is about to be updated; ask it again later" if self._holders else ""

    def answer(self, question: Question, standing: dict[str, Any]) -> bool:
        """Answer a question; returns whether the agent shall end now, to be started again.

        Args:
            question: what is asked.
            standing: what the agent knows of itself; ``busy`` says what keeps it from ending.
        """
        match question.what:
            case "hold":
                self._holders.add(question.visitor)
            case "release":
                self._holders.discard(question.visitor)
        document = {
            **self._process(),
            **self._diary.as_dict(),
            "held": bool(self._holders),
            "store": self._store,
            **standing,
        }
        restart = question.what == "restart" and not standing["busy"]
        question.answer({**document, "restarting": restart})
        return restart

    def _process(self) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "environment": str(this_environment()),
            "on_trial": self._trial is not None,
            "rss_bytes": rss_bytes(os.getpid()),
        }


class _Counter:
    """The socket: one thread waits for visitors, each of whom has a thread while it is there."""

    def __init__(self, folder: Path, post: Callable[[object], None]) -> None:
        self._post = post
        self._seats = threading.Semaphore(_VISITORS)
        self._numbers = itertools.count(1)
        self._door = UnixSocketServer(folder / SOCKET, "desk", self._seat, _LOST)

    def close(self) -> None:
        """Take the socket away; visitors who are there see its end."""
        self._door.close()

    def _seat(self, visitor: socket.socket) -> None:
        number = next(self._numbers)
        if not self._seats.acquire(blocking=False):
            visitor.close()
            return
        threading.Thread(target=self._serve, args=(visitor, number), daemon=True).start()

    def _serve(self, visitor: socket.socket, number: int) -> None:
        try:
            with visitor, visitor.makefile("rb") as asked:
                while line := asked.readline(_QUESTION_BYTES):
                    self._put(visitor, number, line.decode("ascii", "replace").strip())
        except OSError as error:
            _LOG.debug("a visitor left: %s", error)
        finally:
            self._post(Question("release", number, lambda _: None))
            self._seats.release()

    def _put(self, visitor: socket.socket, number: int, word: str) -> None:
        answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        match word:
            case "status" | "hold" | "release" | "restart":
                self._post(Question(word, number, answers.put))
                try:
                    document = answers.get(timeout=_ANSWER_S)
                except queue.Empty:
                    document = {"error": "the agent does not answer: its main thread hangs"}
            case _:
                document = {"error": f"no question {word!r}"}
        visitor.sendall(json.dumps(document).encode() + b"\n")
