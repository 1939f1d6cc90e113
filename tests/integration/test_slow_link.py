"""A body goes out for as long as bytes go, however slow the link; silence ends it."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.errors import Unavailable
from storage.transfer.files import Transfers, TransferSettings

SIZE = 9 << 20  # more than a socket's buffers hold
# each pause of the server is beyond the first, and none comes near the second
HASTY = TransferSettings(attempts=1, connect_s=0.1, read_s=2.0)


@contextlib.contextmanager
def drip(takes: int) -> Iterator[tuple[str, list[int]]]:
    """Give a server that takes up to ``takes`` bytes in small sips, then answers or falls silent.

    Yields its URL and a list to which each body's size is added once it is whole.
    """
    whole: list[int] = []
    over = threading.Event()
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 15)
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                head = b""
                while b"\r\n\r\n" not in head:
                    head += connection.recv(4096)
                got = len(head.partition(b"\r\n\r\n")[2])
                while got < takes and (sip := connection.recv(1 << 16)):
                    if (got + len(sip)) >> 20 > got >> 20:
                        over.wait(0.15)  # longer than a connection is waited for
                    got += len(sip)
                if got == SIZE:
                    whole.append(got)
                    connection.sendall(b'HTTP/1.1 200 OK\r\nETag: "x"\r\nContent-Length: 0\r\n\r\n')
                over.wait(30.0)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/bucket/key", whole
        finally:
            over.set()
            thread.join()


@pytest.fixture
def update(tmp_path: Path) -> Path:
    path = tmp_path / "update"
    path.write_bytes(bytes(SIZE))
    return path


def test_an_update_outlasts_the_patience_of_connecting(update: Path) -> None:
    with drip(SIZE) as (url, whole):
        assert Transfers(HASTY).upload(url, update) == SIZE
    assert whole == [SIZE]


def test_a_link_that_falls_silent_under_an_update_is_left(update: Path) -> None:
    with drip(SIZE // 8) as (url, whole), pytest.raises(Unavailable):
        Transfers(TransferSettings(attempts=1, connect_s=2.0, read_s=0.2)).upload(url, update)
    assert whole == []
