"""The Unix socket at which a person's command line puts questions to a running agent.

One thread accepts connections, and each has a thread of its own. A question goes through the
agent's inbox and is answered by its owner thread, so an agent whose owner thread hangs is silent.
"""

from __future__ import annotations

import itertools
import json
import logging
import queue
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from runtime.processes.unix_socket import UnixSocketServer

_LOG = logging.getLogger(__name__)
SOCKET = "agent.sock"
_SOCKET_LOST = "`rengo agent status` gets no answers any more"
_ANSWER_S = 10.0
_QUESTION_BYTES = 64
_MOST_CONNECTIONS = 4


@dataclass(frozen=True)
class Question:
    """A question of a program on this machine.

    Attributes:
        what: ``hold`` keeps orders away until ``release`` or until the connection ends.
        connection: the number of the connection that it came over.
        answer: takes the document, on any thread.
    """

    what: Literal["status", "hold", "release", "restart"]
    connection: int
    answer: Callable[[dict[str, Any]], None]


class QuestionSocket:
    """Listens at ``agent.sock`` in the agent's folder.

    Args:
        post: puts a question into the agent's inbox; called on the connections' threads.

    Raises:
        OSError: no socket can be made there.
    """

    def __init__(self, folder: Path, post: Callable[[object], None]) -> None:
        self._post = post
        self._free = threading.Semaphore(_MOST_CONNECTIONS)
        self._numbers = itertools.count(1)
        self._server = UnixSocketServer(folder / SOCKET, "status", self._admit, _SOCKET_LOST)

    def close(self) -> None:
        """Remove the socket; connections that stand end with it."""
        self._server.close()

    def _admit(self, connection: socket.socket) -> None:
        number = next(self._numbers)
        if not self._free.acquire(blocking=False):
            connection.close()
            return
        threading.Thread(target=self._serve, args=(connection, number), daemon=True).start()

    def _serve(self, connection: socket.socket, number: int) -> None:
        try:
            with connection, connection.makefile("rb") as questions:
                while line := questions.readline(_QUESTION_BYTES):
                    self._ask(connection, number, line.decode("ascii", "replace").strip())
        except OSError as error:
            _LOG.debug("a connection ended: %s", error)
        finally:
            self._post(Question("release", number, lambda _: None))
            self._free.release()

    def _ask(self, connection: socket.socket, number: int, word: str) -> None:
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
        connection.sendall(json.dumps(document).encode() + b"\n")
