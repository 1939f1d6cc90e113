"""How a process reaches a broker in another container: by the broker's supervisor, its parent.

A broker reloads its users on a signal and lists its sessions on loopback; neither goes from one
container to another. So the supervisor answers at the Unix socket ``broker.sock`` in the folder.
"""

from __future__ import annotations

import json
import logging
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from runtime.errors import ConfigError, RengoError, TransportError
from runtime.processes.child import Child
from runtime.processes.unix_socket import UnixSocketServer, short_address

_LOG = logging.getLogger(__name__)
SOCKET = "broker.sock"
_ANSWER_TIMEOUT_S = 10.0
_REQUEST_TIMEOUT_S = 2.0
_MAX_BYTES = 16
_MAX_ANSWER_BYTES = 16 * 1024 * 1024
_STOPPED = "changes of the MQTT broker's users are not applied any more"

BrokerRequest = Literal["pid", "reload"]


def ask_supervisor(folder: Path, request: BrokerRequest) -> int | None:
    """Return the pid of the broker on a folder, as its supervisor sees it; None when none runs.

    Any thread of any process that shares the folder and the user may call it.

    Args:
        folder: the broker's data folder.
        request: "reload" also makes the broker reload its users.

    Raises:
        TransportError: the supervisor does not answer, or belongs to another user.
    """
    answer = _ask(folder, request)
    return int(answer) if answer.strip() else None


def ask_sessions(folder: Path) -> list[str]:
    """Return the client ids of the sessions that the broker on a folder keeps; none when none runs.

    Any thread of any process that shares the folder and the user may call it.

    Raises:
        TransportError: the supervisor or its broker does not answer.
    """
    answer = _ask(folder, "sessions")
    if not answer.strip():
        return []
    found = json.loads(answer)
    if isinstance(found, str):
        raise TransportError(found)
    return [str(each) for each in found]


def _ask(folder: Path, request: str) -> bytes:
    """Return the supervisor's answer, empty where none is there."""
    try:
        with (
            short_address(folder / SOCKET) as address,
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client,
        ):
            client.settimeout(_ANSWER_TIMEOUT_S)
            client.connect(address)
            client.sendall(f"{request}\n".encode("ascii"))
            with client.makefile("rb") as answer:
                return answer.readline(_MAX_ANSWER_BYTES)
    except (FileNotFoundError, ConnectionError):
        return b""
    except OSError as error:
        raise TransportError(
            f"the supervisor of the MQTT broker in {folder} does not answer: {error}"
        ) from error


class ControlSocket:
    """Answers requests for one broker, until ``close``, on a thread of its own.

    Args:
        folder: the broker's data folder, which no other process uses.
        broker: the child; it need not run yet.
        sessions: returns the client ids of the sessions that the running broker keeps.

    Raises:
        ConfigError: no socket can be made in the folder.
    """

    def __init__(
        self, folder: Path, broker: Child, sessions: Callable[[], list[str]] = list
    ) -> None:
        self._broker = broker
        self._sessions = sessions
        path = folder / SOCKET
        try:
            self._server = UnixSocketServer(path, "broker-control", self._handle, _STOPPED)
        except OSError as error:
            raise ConfigError(f"there can be no socket {path}: {error}") from error

    def close(self) -> None:
        """Remove the socket; requests from then on find that no broker runs."""
        self._server.close()

    def _handle(self, client: socket.socket) -> None:
        try:
            with client:
                client.settimeout(_REQUEST_TIMEOUT_S)
                client.sendall(self._answer(client.recv(_MAX_BYTES)))
        except OSError as error:
            _LOG.debug("a request for the MQTT broker failed: %s", error)

    def _answer(self, request: bytes) -> bytes:
        if not self._broker.running:
            return b"\n"
        if request == b"reload\n":
            self._broker.signal(signal.SIGHUP)
        if request == b"sessions\n":
            return self._listed().encode() + b"\n"
        return b"%d\n" % self._broker.pid

    def _listed(self) -> str:
        try:
            return json.dumps(self._sessions())
        except RengoError as error:
            return json.dumps(str(error))
