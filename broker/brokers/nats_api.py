"""Asks a nats-server which MQTT sessions it keeps and whether it stores, in NATS's own protocol.

NATS has no list of MQTT sessions. It keeps each as a message of a stream, which a user who may read
that stream can go through.

Source: https://docs.nats.io/reference/reference-protocols/nats-protocol (the protocol),
https://docs.nats.io/reference/reference-protocols/nats_api_reference (STREAM.MSG.GET), and
https://docs.nats.io/running-a-nats-service/nats_admin/monitoring (HEALTHZ).
"""

from __future__ import annotations

import base64
import contextlib
import json
import secrets
import socket
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Final, Self

from runtime.errors import TransportError

_SESSIONS = "$JS.API.STREAM.MSG.GET.$MQTT_sess"
_STREAMS = "$JS.API.STREAM.LIST"
_CONSUMERS = "$JS.API.CONSUMER.NAMES.$MQTT_msgs"
_END_CONSUMER = "$JS.API.CONSUMER.DELETE.$MQTT_msgs."
_END_SESSION = "$JS.API.STREAM.MSG.DELETE.$MQTT_sess"
STATE_APIS: Final = (_SESSIONS, _STREAMS, _CONSUMERS, f"{_END_CONSUMER}*", _END_SESSION)
HEALTH_API: Final = "$SYS.REQ.SERVER.PING.HEALTHZ"
INBOXES: Final = "_INBOX.>"
_TIMEOUT_S = 5.0
_NOT_FOUND = 404


def lasting_sessions(address: tuple[str, int], user: str, password: str) -> list[str]:
    """Return the client ids of the sessions that outlive their connections.

    Args:
        address: of the listener for NATS's own clients.
        user: one that may publish to ``STATE_APIS`` and subscribe to ``INBOXES``.
        password: the user's.

    Raises:
        TransportError: the server does not answer, or answers what cannot be read.
    """
    with _answering("its sessions"), _NatsClient(address, user, password) as client:
        return [str(session["id"]) for _, session in client.lasting_sessions()]


def end_deaf_sessions(address: tuple[str, int], user: str, password: str) -> list[str]:
    """End the lasting sessions of which a queue is lost, and return their client ids.

    A session has its queues in its record. The server starts without one whose description is
    damaged, or that a kill has deleted before the record; the session then gets nothing any more.
    One that is connected stays deaf until the server is started again.

    Args:
        address: of the listener for NATS's own clients.
        user: one that may publish to ``STATE_APIS`` and subscribe to ``INBOXES``.
        password: the user's.

    Raises:
        TransportError: the server does not answer, or answers what cannot be read.
    """
    ended = []
    with _answering("its queues"), _NatsClient(address, user, password) as client:
        sessions = list(client.lasting_sessions())
        there = set(client.queues())  # after the sessions: one that comes meanwhile has its queues
        for number, session in sessions:
            own = {queue["durable_name"] for queue in (session.get("cons") or {}).values()}
            if own <= there:
                continue
            for name in own & there:
                client.ask_for(f"{_END_CONSUMER}{name}", {})
            client.ask_for(_END_SESSION, {"seq": number, "no_erase": True})
            ended.append(str(session["id"]))
    return ended


def broken_stream(address: tuple[str, int], user: str, password: str) -> str:
    """Return which stream is of no use to the server, and why; "" where none is.

    At its start it takes a stream out of service whose description it cannot read, and then refuses
    every connection by MQTT. Of one whose messages it cannot read it knows the subjects alone.

    Args:
        address: of the listener for NATS's own clients.
        user: one that may publish to ``STATE_APIS`` and subscribe to ``INBOXES``.
        password: the user's.

    Raises:
        TransportError: the server does not answer, or answers what cannot be read.
    """
    with _answering("how its streams are"), _NatsClient(address, user, password) as client:
        found = json.loads(client.ask(_STREAMS, {}))
        for name, why in (found.get("offline") or {}).items():
            return f"stream {name} is offline: {why}"
        for each in found.get("streams") or []:
            state = each["state"]
            if state.get("num_subjects", 0) > state["messages"]:
                return f"stream {each['config']['name']} is corrupt: {state}"
    return ""


def health_error(address: tuple[str, int], user: str, password: str) -> str:
    """Return what the server says is wrong with itself, "" where all is well.

    It knows of each stream and consumer whose writing has failed, and then refuses what it is to
    store until it is started again.

    Args:
        address: of the listener for NATS's own clients.
        user: one of the system's account that may publish to ``HEALTH_API`` and subscribe to
            ``INBOXES``.
        password: the user's.

    Raises:
        TransportError: the server does not answer, or answers what cannot be read.
    """
    with _answering("how it is"), _NatsClient(address, user, password) as client:
        health = json.loads(client.ask(HEALTH_API, {"details": True}))["data"]
        if health["status"] == "ok":
            return ""
        found = [str(each["error"]) for each in health.get("errors", [])]
        return found[0] if found else str(health.get("error") or health["status"])


@contextlib.contextmanager
def _answering(what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TransportError(f"the MQTT broker does not tell {what}: {error!r}") from error


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

    def lasting_sessions(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the sessions that outlive their connections, each with its record's number."""
        number = 1
        while True:
            found = self.ask_for(_SESSIONS, {"seq": number, "next_by_subj": ">"})
            if found is None:
                return
            record = found["message"]
            number = record["seq"] + 1
            session = json.loads(base64.b64decode(record["data"]))
            if not session.get("clean"):
                yield record["seq"], session

    def queues(self) -> Iterator[str]:
        """Yield the names of the queues of all sessions."""
        count = 0
        while (found := self.ask_for(_CONSUMERS, {"offset": count})) and found["consumers"]:
            yield from found["consumers"]
            count += len(found["consumers"])

    def ask_for(self, subject: str, question: dict[str, Any]) -> dict[str, Any] | None:
        """Return an answer, None where it is that there is none."""
        answer: dict[str, Any] = json.loads(self.ask(subject, question))
        error = answer.get("error")
        if error is not None and error.get("code") == _NOT_FOUND:
            return None
        if error is not None:
            raise ValueError(error)
        return answer

    def ask(self, subject: str, question: dict[str, Any]) -> bytes:
        """Return the answer to a question."""
        asked = json.dumps(question).encode()
        head = f"PUB {subject} {self._inbox} {len(asked)}\r\n".encode()
        self._send(b"%s%s\r\n" % (head, asked))
        return self._answer()

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
