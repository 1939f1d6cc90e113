"""How a process reaches a broker that it cannot see: by the keeper, whose child the broker is.

A broker takes changed users when it gets a signal, and a signal reaches nobody in another
container. So the keeper answers at the Unix socket ``broker.sock`` of the broker's folder.
"""

from __future__ import annotations

import logging
import signal
import socket
from pathlib import Path
from typing import Literal

from runtime.errors import ConfigError, TransportError
from runtime.processes.child import Child
from runtime.processes.unix_socket import UnixSocketServer, short_address

_LOG = logging.getLogger(__name__)
SOCKET = "broker.sock"
_ANSWER_S = 10.0
_PATIENCE_S = 2.0
_WORD_BYTES = 16
_LOST = "changes of the MQTT broker's users are not heard any more"

PendingDownload = Literal["pid", "reload"]


def ask_keeper(folder: Path, wish: PendingDownload) -> int | None:
    """Return the pid, as its keeper counts, of the broker on a folder; None when none runs.

    Any thread of any process that shares the folder and the user.

    Args:
        folder: the broker's data folder.
        wish: "reload" also has the broker read its users anew.

    Raises:
        TransportError: the keeper does not answer, or belongs to another user.
    """
    try:
        with (
            short_address(folder / SOCKET) as address,
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door,
        ):
            door.settimeout(_ANSWER_S)
            door.connect(address)
            door.sendall(f"{wish}\n".encode("ascii"))
            answer = door.recv(_WORD_BYTES)
    except (FileNotFoundError, ConnectionError):
        return None
    except OSError as error:
        raise TransportError(
            f"who keeps the MQTT broker in {folder} does not answer: {error}"
        ) from error
    return int(answer) if answer.strip() else None


class ControlSocket:
    """Answers for one broker, from its making until ``close``, on a thread of its own.

    Args:
        folder: the broker's data folder, which this process has to itself.
        broker: the child; it need not run yet.

    Raises:
        ConfigError: there can be no socket in the folder.
    """

    def __init__(self, folder: Path, broker: Child) -> None:
        self._broker = broker
        path = folder / SOCKET
        try:
            self._door = UnixSocketServer(path, "keeper", self._visit, _LOST)
        except OSError as error:
            raise ConfigError(f"there can be no socket {path}: {error}") from error

    def close(self) -> None:
        """Take the socket away; who asks from then on is told that no broker runs."""
        self._door.close()

    def _visit(self, visitor: socket.socket) -> None:
        try:
            with visitor:
                visitor.settimeout(_PATIENCE_S)
                visitor.sendall(self._answer(visitor.recv(_WORD_BYTES)))
        except OSError as error:
            _LOG.debug("who asked for the MQTT broker left: %s", error)

    def _answer(self, wish: bytes) -> bytes:
        if not self._broker.running:
            return b"\n"
        if wish == b"reload\n":
            self._broker.signal(signal.SIGHUP)
        return b"%d\n" % self._broker.pid
