"""Asks a nats-server which MQTT sessions it keeps, in NATS's own protocol.

NATS has no list of MQTT sessions. It keeps each as a message of a stream, which a user who may read
that stream can go through.

Source: https://docs.nats.io/reference/reference-protocols/nats-protocol (the protocol), and
https://docs.nats.io/reference/reference-protocols/nats_api_reference (STREAM.MSG.GET).
"""

from __future__ import annotations

import base64
import json
import secrets
import socket
from types import TracebackType
from typing import Any, Final, Self

from runtime.errors import TransportError

SESSIONS_API: Final = "$JS.API.STREAM.MSG.GET.$MQTT_sess"
INBOXES: Final = "_INBOX.>"
_TIMEOUT_S = 5.0
_NOT_FOUND = 404


def lasting_sessions(address: tuple[str, int], user: str, password: str) -> list[str]:
    """Return the client ids of the sessions that outlive their connections.

    Args:
        address: of the listener for NATS's own clients.
        user: one that may publish to ``SESSIONS_API`` and subscribe to ``INBOXES``.
        password: the user's.

    Raises:
        TransportError: the server does not answer, or answers what cannot be read.
    """
    found, number = [], 1
    try:
        with _NatsClient(address, user, password) as client:
            while (record := client.next_message(number)) is not None:
                number = record["seq"] + 1
                session = json.loads(base64.b64decode(record["data"]))
                if not session.get("clean"):
                    found.append(str(session["id"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TransportError(f"the MQTT broker does not tell its sessions: {error!r}") from error
    return found


class _NatsClient:
    """One connection that asks one question at a time."""

    def __init__(self, address: tuple[str, int], user: str, password: str) -> None:
        self._socket = socket.create_connection(address, _TIMEOUT_S)
        self._lines = self._socket.makefile("rb")
        self._inbox = f"_INBOX.{secrets.token_hex(8)}"
        options = {"user": user, "pass": password, "verbose": False, "pedantic": False}
        self._send(f"CONNECT {json.dumps(options)}\r\nSUB {self._inbox} 1\r\n".encode())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lines.close()
        self._socket.close()

    def next_message(self, number: int) -> dict[str, Any] | None:
        """Return the stream's first message from a number on; None where there is none."""
        asked = json.dumps({"seq": number, "next_by_subj": ">"}).encode()
        self._send(b"PUB %s %s %d\r\n%s\r\n" % (*self._route(), len(asked), asked))
        answer = json.loads(self._answer())
        error = answer.get("error")
        if error is not None and error.get("code") == _NOT_FOUND:
            return None
        if error is not None:
            raise ValueError(error)
        message: dict[str, Any] = answer["message"]
        return message

    def _route(self) -> tuple[bytes, bytes]:
        return SESSIONS_API.encode(), self._inbox.encode()

    def _answer(self) -> bytes:
        while True:
            line = self._lines.readline()
            match line.split():
                case [b"MSG", *_, size]:
                    payload = self._lines.read(int(size))
                    self._lines.readline()
                    return payload
                case [b"PING"]:
                    self._send(b"PONG\r\n")
                case [b"-ERR", *why]:
                    raise ValueError(b" ".join(why).decode("utf-8", "replace"))
                case []:
                    raise ConnectionError("the connection was closed")

    def _send(self, data: bytes) -> None:
        self._socket.sendall(data)
