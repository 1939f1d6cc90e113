"""Real TLS listeners for tests: both brokers, and a port that answers as told."""

from __future__ import annotations

import getpass
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from broker.brokers.nats import nats_server_binary
from runtime.processes.child import Child
from runtime.processes.ports import free_port
from tests.support import require

Broker = Literal["nats", "mosquitto"]
Pair = tuple[Path, Path]


def _nats(folder: Path, port: int, pair: Pair, client_ca: Path | None) -> tuple[list[str], str]:
    mutual = "" if client_ca is None else f'ca_file: "{client_ca}", verify: true,'
    text = (
        f'server_name: "tls", host: "127.0.0.1", port: {free_port()}\n'
        f'jetstream {{ store_dir: "{folder / "jetstream"}" }}\n'
        f'mqtt {{ host: "127.0.0.1", port: {port}\n'
        f'  tls {{ {mutual} cert_file: "{pair[0]}", key_file: "{pair[1]}" }} }}\n'
    )
    return [str(nats_server_binary()), "-c", str(folder / "conf")], text


def _mosquitto(folder: Path, port: int, pair: Pair, ca: Path | None) -> tuple[list[str], str]:
    mutual = "" if ca is None else f"cafile {ca}\nrequire_certificate true\n"
    text = (
        f"user {getpass.getuser()}\nlistener {port} 127.0.0.1\nallow_anonymous true\n"
        f"certfile {pair[0]}\nkeyfile {pair[1]}\n{mutual}"
    )
    return [str(require("mosquitto")), "-c", str(folder / "conf")], text


_BROKERS = {"nats": _nats, "mosquitto": _mosquitto}


@contextmanager
def tls_broker(
    folder: Path, kind: Broker, pair: Pair, client_ca: Path | None = None
) -> Iterator[int]:
    """Yield the port of a broker that shows ``pair`` and, with ``client_ca``, asks for one."""
    folder.mkdir()
    port = free_port()
    argv, text = _BROKERS[kind](folder, port, pair, client_ca)
    (folder / "conf").write_text(text)
    child = Child(kind, argv, folder / "log")
    child.start()
    try:
        child.wait_ready(lambda: _listens(port), 20)
        yield port
    finally:
        child.stop()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def listening(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """Yield a loopback port where every connection is given to ``answer`` and then closed."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=_serve, args=(server, answer))
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def _serve(server: socket.socket, answer: Callable[[socket.socket], None]) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        with connection:
            connection.settimeout(10)
            try:
                answer(connection)
            except OSError:
                continue


def speaking_tls(context: ssl.SSLContext, then: bytes = b"") -> Callable[[socket.socket], None]:
    """Return what shakes hands, reads once and sends ``then``."""

    def answer(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as inner:
            inner.recv(1000)
            if then:
                inner.sendall(then)

    return answer


def saying(data: bytes) -> Callable[[socket.socket], None]:
    """Return what reads once and answers ``data``, without TLS."""

    def answer(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(data)

    return answer
