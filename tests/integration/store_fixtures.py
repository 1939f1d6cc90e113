"""Real stores for tests, and a server that misbehaves on demand.

Use with ``from tests.integration.store_fixtures import juicefs_store`` and the like; each server is
started once for a module, on a free loopback port, and stopped by its own pid.
"""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import pytest

from storage.store.embedded import EmbeddedStore, Kind
from storage.store.s3 import S3Store
from storage.store.servers.seaweedfs import Seaweedfs

KINDS: tuple[Kind, ...] = ("juicefs", "seaweedfs")


class Unsecured(Seaweedfs):
    """A server of somebody else's, whose parts trust each other.

    SeaweedFS reads the parts of an encrypted object without the keys of its own parts, so that one
    of a site gives back no large object that is encrypted.
    """

    def _write_security(self) -> None:
        pass


@contextmanager
def running_store(folder: Path, kind: Kind, *, encrypts: bool = False) -> Iterator[EmbeddedStore]:
    servers = {"seaweedfs": Unsecured} if encrypts else {}
    with patch.dict("storage.store.embedded._SERVERS", servers):
        store = EmbeddedStore(folder, kind)
    store.start()
    try:
        yield store
    finally:
        store.stop()


def bucket_of(embedded: EmbeddedStore) -> S3Store:
    store = S3Store(embedded.settings)
    store.ensure_bucket()
    return store


@pytest.fixture(scope="module", params=KINDS)
def embedded_store(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EmbeddedStore]:
    with running_store(tmp_path_factory.mktemp("store") / request.param, request.param) as store:
        yield store


@pytest.fixture(scope="module")
def juicefs_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStore]:
    with running_store(tmp_path_factory.mktemp("store"), "juicefs") as store:
        yield store


@dataclass
class Answer:
    """What the rough server does with one request.

    Attributes:
        status: instead of the object, when not 200.
        cut_after: bytes of the body after which the connection is broken.
        ignore_range: send the whole object whatever was asked for.
        block_bytes, pause_s: a slow link.
        take: bytes of an upload that are read before the connection is broken.
    """

    status: int = 200
    cut_after: int | None = None
    ignore_range: bool = False
    block_bytes: int = 1 << 16
    pause_s: float = 0.0
    take: int | None = None


@dataclass
class Seen:
    method: str
    path: str
    range: str | None


@dataclass
class RoughStore:
    """An HTTP server with one object, which answers as told: each answer once, then well."""

    body: bytes = b""
    answers: list[Answer] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    uploaded: bytes | None = None
    sent: int = 0
    url: str = ""

    def next(self) -> Answer:
        return self.answers.pop(0) if self.answers else Answer()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: RoughStore

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        return

    def _refuse(self, status: int) -> None:
        self.send_response(status)
        if 300 <= status < 400:
            self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", "0")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True

    def _begin(self) -> Answer:
        self.store.seen.append(Seen(self.command, self.path, self.headers.get("Range")))
        return self.store.next()

    def do_GET(self) -> None:
        answer, body, first = self._begin(), self.store.body, 0
        end = len(body)
        if answer.status != 200:
            self._refuse(answer.status)
            return
        asked = self.headers.get("Range")
        if asked and not answer.ignore_range:
            start, _, last = asked.removeprefix("bytes=").partition("-")
            first, end = int(start), min(int(last) + 1, end) if last else end
            if first >= len(body):
                self._refuse(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{end - 1}/{len(body)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(end - first))
        self.end_headers()
        self._send(body[first:end], answer)

    def _send(self, body: bytes, answer: Answer) -> None:
        end = len(body) if answer.cut_after is None else min(answer.cut_after, len(body))
        try:
            for start in range(0, end, answer.block_bytes):
                block = body[start : min(start + answer.block_bytes, end)]
                # first: whoever has the block may ask at once
                self.store.sent += len(block)
                self.wfile.write(block)
                if answer.pause_s:
                    time.sleep(answer.pause_s)
        except (BrokenPipeError, ConnectionResetError):
            # the other side gave up, which is what some tests are about
            self.close_connection = True
        if answer.cut_after is not None:
            self.close_connection = True

    def do_PUT(self) -> None:
        answer = self._begin()
        if answer.status != 200:
            self._refuse(answer.status)
            return
        length = int(self.headers["Content-Length"])
        if answer.take is not None:
            self.rfile.read(min(answer.take, length))
            self.close_connection = True
            return
        self.store.uploaded = self.rfile.read(length)
        self._refuse(200)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is part of the tests."""


@pytest.fixture
def rough_store() -> Iterator[RoughStore]:
    store = RoughStore()
    handler = type("Handler", (_Handler,), {"store": store})
    with _Server(("127.0.0.1", 0), handler) as server:
        store.url = f"http://127.0.0.1:{server.server_port}/bucket/key"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield store
        finally:
            server.shutdown()
            thread.join()
