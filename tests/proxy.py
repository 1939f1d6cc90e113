"""A TCP proxy before a real server: it cuts, slows, answers 503, flips bits and tells when.

A fault is for one connection: the next one that is accepted takes the first of ``faults``. A pool
keeps the connections it has, so give a fault to a fresh pool.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Self
from urllib.parse import urlsplit

_BLOCK_BYTES = 1 << 16
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Fault:
    """What happens to one connection. Offsets count the bytes that went that way on it.

    Attributes:
        cut_up: break both ends once so many bytes went to the server.
        cut_down: the same for bytes to the client.
        stall_down: send no more after so many bytes, and keep the connection.
        flip_up, flip_down: flip a bit of the byte with this number.
        flip_again: flip another one each time so many bytes more went by.
        rate_bps: bytes a second, either way.
        delay_s: before the first byte to the server.
        status: answer a request so, without asking the server, and close.
        on_up, on_down: after so many bytes, call this; what follows waits for its end.
    """

    cut_up: int | None = None
    cut_down: int | None = None
    stall_down: int | None = None
    flip_up: int | None = None
    flip_down: int | None = None
    flip_again: bool = False
    rate_bps: float | None = None
    delay_s: float = 0.0
    status: int | None = None
    on_up: tuple[int, Callable[[], None]] | None = None
    on_down: tuple[int, Callable[[], None]] | None = None


@dataclass
class Proxy:
    """Use as a context manager; ``url`` stands for the target's.

    Attributes:
        faults: for the connections to come, in order; then ``always``.
        connections: how many were accepted.
    """

    target: str
    faults: list[Fault] = field(default_factory=list)
    always: Fault = Fault()
    connections: int = 0
    url: str = ""

    def __enter__(self) -> Self:
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._closing = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        # accept does not wake when another thread closes its socket
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for each in self._sockets:
                _reset(each)
        while self._threads:
            self._threads.pop().join()

    def reset_all(self) -> None:
        """Break every connection that is open."""
        with self._lock:
            for each in self._sockets:
                _reset(each)
            self._sockets.clear()

    def _start(self, work: Callable[[], None]) -> None:
        # started first: __exit__ joins whatever is in the list, also while it grows
        thread = threading.Thread(target=work)
        thread.start()
        self._threads.append(thread)

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self.connections += 1
                fault = self.faults.pop(0) if self.faults else self.always
                self._sockets.add(client)
            self._start(partial(self._serve, client, fault))

    def _serve(self, client: socket.socket, fault: Fault) -> None:
        if fault.status is not None:
            with client, contextlib.suppress(OSError):
                _answer(client, fault.status)
            return
        # little room, so that a server is still at it when something befalls it
        server = socket.socket()
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BLOCK_BYTES)
        place = urlsplit(self.target)
        try:
            server.connect((place.hostname or "", place.port or 80))
        except OSError:
            server.close()
            _reset(client)
            return
        with self._lock:
            self._sockets.add(server)
        if self._closing.wait(fault.delay_s):
            _reset(server)
            _reset(client)
            return
        down = _Way(server, client, fault.cut_down, fault.flip_down, fault.on_down, fault.rate_bps)
        up = _Way(client, server, fault.cut_up, fault.flip_up, fault.on_up, fault.rate_bps)
        down.stall, down.again, up.again = fault.stall_down, fault.flip_again, fault.flip_again
        down.closing = up.closing = self._closing
        self._start(down.run)
        up.run()


@dataclass
class _Way:
    """One direction of a connection."""

    source: socket.socket
    sink: socket.socket
    cut: int | None
    flip: int | None
    on: tuple[int, Callable[[], None]] | None
    rate_bps: float | None
    stall: int | None = None
    again: bool = False
    closing: threading.Event = field(default_factory=threading.Event)
    passed: int = 0
    _turned: int = 0

    def __post_init__(self) -> None:
        self._every = self.flip or 0

    def run(self) -> None:
        try:
            while block := self.source.recv(_BLOCK_BYTES):
                if not self._pass(bytearray(block)):
                    return
            self.sink.shutdown(socket.SHUT_WR)
        except OSError:
            # one end is gone, so is the other
            _reset(self.source)
            _reset(self.sink)

    def _pass(self, block: bytearray) -> bool:
        """Send what may pass of a block; False ends this way."""
        self._flip(block)
        room = min(
            (end - self.passed for end in (self.cut, self.stall) if end is not None),
            default=len(block),
        )
        if self.on is not None and self.passed + len(block) >= self.on[0]:
            head = max(0, self.on[0] - self.passed)
            self.sink.sendall(block[:head])
            block, self.passed = block[head:], self.passed + head
            call, self.on = self.on[1], None
            call()
        self.sink.sendall(block[: max(0, room)])
        self.passed += min(len(block), max(0, room))
        if self.rate_bps is not None:
            self.closing.wait(len(block) / self.rate_bps)
        if self.cut is not None and self.passed >= self.cut:
            _reset(self.source)
            _reset(self.sink)
            return False
        if self.stall is not None and self.passed >= self.stall:
            self.closing.wait()
            return False
        return True

    def _flip(self, block: bytearray) -> None:
        while self.flip is not None and self.flip < self._turned + len(block):
            block[self.flip - self._turned] ^= 1
            self.flip = self.flip + self._every if self.again else None
        self._turned += len(block)


def _reset(end: socket.socket) -> None:
    """Close so that the other side sees a reset, and a thread that waits on it wakes."""
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(OSError):
        end.close()


def _answer(client: socket.socket, status: int) -> None:
    """Read one request to its end and answer it."""
    client.settimeout(10)
    head = b""
    while b"\r\n\r\n" not in head:
        block = client.recv(_BLOCK_BYTES)
        if not block:
            return
        head += block
    head, _, body = head.partition(b"\r\n\r\n")
    length = _LENGTH.search(head + b"\r\n")
    if b"100-continue" in head.lower():
        client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    left = int(length[1]) - len(body) if length else 0
    while left > 0:
        block = client.recv(min(left, _BLOCK_BYTES))
        if not block:
            return
        left -= len(block)
    client.sendall(
        f"HTTP/1.1 {status} Told\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()
    )
