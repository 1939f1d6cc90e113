"""Asks a running agent for its status and shows it."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from fl_client.agent.status.question_socket import SOCKET
from rengo.terminal.format import duration, size
from rengo.terminal.health import health_lines
from runtime.errors import AccessDenied, TransportError
from runtime.processes.unix_socket import short_address

_ANSWER_S = 15.0
_LONGEST = 1 << 20


class StatusClient:
    """A connection to the agent whose data is in a folder.

    Raises:
        TransportError: no agent runs there, or it hangs.
        AccessDenied: it is another user's.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(_ANSWER_S)
        self._heard: BinaryIO

    def __enter__(self) -> Self:
        try:
            with short_address(self._folder / SOCKET) as address:
                self._socket.connect(address)
        except PermissionError as error:
            self._socket.close()
            raise AccessDenied(
                f"the agent in {self._folder} is another user's; try again with sudo"
            ) from error
        except OSError as error:
            self._socket.close()
            raise TransportError(
                f"no agent runs in {self._folder} ({error.strerror}); start it by `rengo client` "
                "or `rengo iot`, or look at its service: systemctl status rengo-agent"
            ) from error
        self._heard = self._socket.makefile("rb")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._heard.close()
        self._socket.close()

    def ask(self, word: str) -> dict[str, Any]:
        """Return the agent's answer; ``hold`` lasts as long as the connection."""
        try:
            self._socket.sendall(f"{word}\n".encode("ascii"))
            line = self._heard.readline(_LONGEST)
        except OSError as error:
            raise TransportError(f"the agent in {self._folder} does not answer: {error}") from error
        if not line:
            raise TransportError(f"the agent in {self._folder} ended, or has too many connections")
        try:
            answer: dict[str, Any] = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise TransportError(f"the agent in {self._folder} answers no JSON") from error
        if "error" in answer:
            raise TransportError(f"the agent in {self._folder}: {answer['error']}")
        return answer


def ask_status(folder: Path) -> dict[str, Any]:
    """Return the status of the agent in a folder; see :class:`StatusClient` for the errors."""
    with StatusClient(folder) as client:
        return client.ask("status")


def running(folders: Iterator[Path]) -> list[Path]:
    """Return those of the folders in which an agent has its socket."""
    return [folder for folder in folders if (folder / SOCKET).exists()]


def lines(status: dict[str, Any]) -> Iterator[str]:
    """Yield a status as it is shown."""
    yield f"{status['device']} of {status['domain']}: {_doing(status)}"
    yield f"  broker      {_connection(status)}"
    yield f"  installed   {status['role']}, {status['engine']} engine, {', '.join(status['tasks'])}"
    yield f"  running     for {duration(status['up_s'])}, {_memory(status)}"
    if status["on_trial"]:
        yield "  on trial    a new installation that has not yet proved itself"
    if status["held"]:
        yield "  held        takes no order: it is about to be updated"
    if status["outbox"]:
        yield f"  outbox      {status['outbox']} waiting to be sent"
    if status.get("server_trouble"):
        yield f"  trouble     {status['server_trouble']}"
    yield from _listed("last rounds", status["rounds"], _round)
    yield from _listed(
        "declined", status["declines"], lambda each: f"{_name(each)}: {each['reason']}"
    )
    steward = status.get("steward") or {}
    if steward.get("health"):
        yield from (f"  {line}" for line in health_lines(steward["health"]))


def _doing(status: dict[str, Any]) -> str:
    job = status["job"]
    if job is not None:
        doing = {
            "fetching": "fetching the model for",
            "working": "working on",
            "uploading": "sending its update of",
        }[job["stage"]]
        return f"{doing} {_name(job)}"
    if status["reporting"]:
        return f"waiting for the server's word on {_name(status['reporting'][0])}"
    if not status["connection"]["connected"]:
        return "waiting for the broker"
    return "ready, waiting for an order"


def _connection(status: dict[str, Any]) -> str:
    link = status["connection"]
    if link["connected"]:
        return f"{status['broker']}, connected for {duration(link['for_s'])}"
    return f"{status['broker']}, not connected for {duration(link['for_s'])}: {link['trouble']}"


def _memory(status: dict[str, Any]) -> str:
    own, child = status["rss_bytes"], status["training_process"]
    text = "memory unknown" if own is None else f"{size(own)} of memory"
    if child is not None and child["rss_bytes"] is not None:
        text += f" and {size(child['rss_bytes'])} for training"
    return text


def _listed(title: str, found: list[dict[str, Any]], text: Any) -> Iterator[str]:
    for number, each in enumerate(found):
        yield f"  {title if number == 0 else '':11} {duration(each['ago_s'])} ago  {text(each)}"
    if not found:
        yield f"  {title:11} none since it started"


def _round(each: dict[str, Any]) -> str:
    metrics = each.get("metrics") or {}
    figures = ", ".join(f"{name} {value:.4g}" for name, value in sorted(metrics.items())[:3])
    trained = f", trained {each['train_s']:.1f} s" if "train_s" in each else ""
    return f"{_name(each)}: {each['status']}{trained}{f', {figures}' if figures else ''}"


def _name(job: dict[str, Any]) -> str:
    if job["action"] == "exchange":
        return f"phase {job['phase']!r} of round {job['round']} of {job['run']}"
    what = "evaluation" if job["action"] == "evaluate" else "round"
    return f"{what} {job['round']} of {job['run']}"
