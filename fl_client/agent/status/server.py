"""Answers questions about a running agent, of people and the service manager of this machine."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fl_client.agent.status.history import History
from fl_client.agent.status.question_socket import Question, QuestionSocket
from fl_client.agent.status.watchdog import ServiceWatchdog
from fl_client.session.events import JobKey
from runtime.processes.environments import UpdateTrial, this_environment
from runtime.processes.notify import Notifier
from runtime.processes.rss import rss_bytes

_LOG = logging.getLogger(__name__)


class StatusServer:
    """The agent's owner thread calls it. Nothing is written to the disk.

    Args:
        notifier: the service manager.
        trial: this installation is on trial; it is kept once the broker was reached.
    """

    def __init__(self, notifier: Notifier | None = None, trial: UpdateTrial | None = None) -> None:
        self._history = History()
        self.watchdog = ServiceWatchdog(notifier or Notifier(), trial, self._history.started_s)
        self._holders: set[int] = set()
        self._store = ""
        self._socket: QuestionSocket | None = None

    def open(self, folder: Path, post: Callable[[object], None]) -> None:
        """Answer from now on; without a socket where none can be made, which is logged."""
        try:
            self._socket = QuestionSocket(folder, post)
        except OSError as error:
            _LOG.warning("no status for `rengo agent status`: %s", error)

    def close(self) -> None:
        """Stop answering: the agent stops."""
        self.watchdog.stopping()
        if self._socket is not None:
            self._socket.close()

    # --- what the agent reports -----------------------------------------------------------------

    def connected(self, broker: str) -> None:
        """Note that the broker has admitted this device."""
        self._history.record_connected()
        self.watchdog.connected(broker)

    def disconnected(self, reason: str) -> None:
        """Note that the connection is lost, or that none could be made."""
        if self._history.record_disconnected(reason):
            self.watchdog.disconnected(reason)

    def session_failed(self, reason: str) -> None:
        """Note a failure of the session; without a connection, that is why there is none."""
        if not self._history.connected:
            self.disconnected(reason)

    def server_trouble(self, why: str) -> None:
        """Note and log what keeps the server and this device from working together; "" for nothing.

        What is told again changes nothing.
        """
        if why and why != self._history.server_trouble:
            _LOG.error("%s", why)
        self._history.server_trouble = why

    def store_at(self, url: str) -> None:
        """Note where the object store is: where this URL leads."""
        parts = urlsplit(url.partition("?")[0])
        self._store = f"{parts.scheme}://{parts.netloc}"

    def declined(self, key: JobKey, reason: str) -> None:
        """Note an order that was not taken."""
        self._history.record_decline(key, reason)

    def ended(self, key: JobKey, result: dict[str, Any]) -> None:
        """Note a job that has ended."""
        self._history.record_end(key, result)

    # --- questions ------------------------------------------------------------------------------

    @property
    def held(self) -> str:
        """Why no order is taken now, "" when nobody holds the agent."""
        return "this device is about to be updated; ask it again later" if self._holders else ""

    def answer(self, question: Question, state: dict[str, Any]) -> bool:
        """Answer a question; returns whether the agent shall end now, to be started again.

        Args:
            question: what is asked.
            state: what the agent knows of itself; ``busy`` says what keeps it from ending.
        """
        match question.what:
            case "hold":
                self._holders.add(question.connection)
            case "release":
                self._holders.discard(question.connection)
        restart = question.what == "restart" and not state["busy"]
        question.answer(
            {
                "pid": os.getpid(),
                "environment": str(this_environment()),
                "on_trial": self.watchdog.on_trial,
                "rss_bytes": rss_bytes(os.getpid()),
                **self._history.document(),
                "held": bool(self._holders),
                "store": self._store,
                **state,
                "restarting": restart,
            }
        )
        return restart
