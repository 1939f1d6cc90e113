"""Downloads and uploads of files by presigned URLs, as devices do them, without credentials.

A download is written to ``<name>.part`` beside its path, is resumed from there after any cut or
restart, and gets its name only when its sha256 is right. No ETag has to match: the sha256 covers
the whole file, whatever the URL served.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import tenacity

from runtime.errors import AccessDenied, Corrupt, StorageError, Unavailable
from runtime.retry import retrying
from runtime.security.tls import Tls
from storage.transfer import http
from storage.transfer.byte_ranges import EarlierReader, EarlierVersion, open_earlier
from storage.transfer.multipart import MultipartTarget
from storage.transfer.multipart_upload import MultipartUpload, RenewTarget

if TYPE_CHECKING:
    import urllib3

RenewUrl = Callable[[], str]
OnProgress = Callable[[int], None]
"""Called with the size so far after each block; an exception from it ends the transfer."""


class Cancelled(StorageError):
    """The owner cancelled the transfer; what has arrived is kept for the next call."""


@dataclass(frozen=True)
class TransferSettings:
    """The limits of a transfer.

    Attributes:
        attempts: attempts in a row that move no byte.
        total_s: the most time that one transfer may take.
        connect_s: the longest wait for a connection.
        read_s: the longest silence of the store.
    """

    attempts: int = 6
    total_s: float = 900.0
    connect_s: float = 5.0
    read_s: float = 30.0


class Transfers:
    """Downloads and uploads over a shared pool of connections. Any thread may call it.

    Args:
        settings: their limits.
        tls: which authority to trust for https URLs; None trusts the system's.
        count_bytes: called with bytes as they move, on the threads that move them.

    Raises:
        ConfigError: the TLS material is not usable.
    """

    def __init__(
        self,
        settings: TransferSettings | None = None,
        tls: Tls | None = None,
        count_bytes: Callable[[int], None] | None = None,
    ) -> None:
        self._settings = settings or TransferSettings()
        self._count_bytes = count_bytes
        self._tls = tls
        if tls is not None:
            tls.context()  # raises now what would fail at the first transfer

    @cached_property
    def _http(self) -> urllib3.PoolManager:
        """The connections, made at the first transfer."""
        return http.pool(
            tls=self._tls,
            connect_s=self._settings.connect_s,
            read_s=self._settings.read_s,
            size=4,
        )

    def download(
        self,
        url: str,
        path: Path,
        *,
        sha256: str,
        size: int,
        renew: RenewUrl | None = None,
        cancel: threading.Event | None = None,
        on_progress: OnProgress | None = None,
        earlier: EarlierVersion | None = None,
    ) -> int:
        """Download the object to ``path`` and return the bytes that were transferred.

        None are when the file exists with the right sha256. Blocks the calling thread. The file is
        not forced to the disk: the next call verifies what a power cut has left of it.

        Args:
            url: a presigned GET.
            path: where the file goes; its folder must exist.
            sha256: in hex, of the whole file.
            size: of the whole file, in bytes.
            renew: called for another URL when the store refuses this one.
            cancel: checked between blocks and during waits.
            on_progress: called with how much of the file exists.
            earlier: an earlier version, from which unchanged bytes are copied if it is usable.

        Raises:
            Corrupt: the object is not that file, also after a second, whole download.
            AccessDenied: a URL was refused, and so was the renewed one.
            NotFound: no such object.
            Unavailable: too many attempts moved no byte, or the time is over.
            StorageError: the store's certificate was refused; says what to do.
            Cancelled: ``cancel`` was set.
        """
        what = f"GET {http.redacted(url)}"
        deadline = time.monotonic() + self._settings.total_s
        state = _TransferState(
            what,
            url,
            renew,
            cancel,
            deadline,
            on_progress=on_progress,
            count_bytes=self._count_bytes,
        )
        if path.is_file() and path.stat().st_size == size and _hash(path, state) == sha256:
            return 0
        part = path.with_name(f"{path.name}.part")
        with _open_part(part) as file:
            target = _PartFile(file, size, state)
            with open_earlier(earlier, size) as source:
                self._fetch_rest(state, target, source)
            self._verify(state, target, sha256)
        part.replace(path)
        return state.moved

    def upload(
        self,
        url: str,
        path: Path,
        *,
        headers: Mapping[str, str] | None = None,
        renew: RenewUrl | None = None,
        cancel: threading.Event | None = None,
    ) -> int:
        """Upload the file by a presigned PUT and return the bytes that were transferred.

        Args:
            url: a presigned PUT.
            path: the file.
            headers: those that are signed into the URL, and into the renewed ones.
            renew: called for another URL when the store refuses this one.
            cancel: checked between blocks and during waits.

        Raises:
            AccessDenied, NotFound, Unavailable, StorageError, Cancelled: as for :meth:`download`.
            Corrupt: the file changed its size meanwhile.
        """
        what = f"PUT {http.redacted(url)}"
        deadline = time.monotonic() + self._settings.total_s
        state = _TransferState(what, url, renew, cancel, deadline, count_bytes=self._count_bytes)
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            self._try(state, lambda: self._send(state, file, size, headers or {}))
        return state.moved

    def upload_in_parts(
        self,
        target: MultipartTarget,
        path: Path,
        *,
        renew: RenewTarget | None = None,
        cancel: threading.Event | None = None,
    ) -> int:
        """Upload a large file in parts and return the bytes that were transferred.

        A list of the uploaded parts is kept beside the file, so that a new process sends the rest.

        Args:
            target: where to upload the parts.
            path: the file; ``path.parts`` beside it is written meanwhile and stays.
            renew: called for new URLs when the store refuses one, or has lost the upload.
            cancel: checked between blocks and during waits.

        Raises:
            AccessDenied, NotFound, Unavailable, StorageError, Cancelled: as for :meth:`download`;
                the time is counted from the last uploaded part.
            Corrupt: the file changed its size meanwhile, or the store keeps losing parts.
        """
        what = f"PUT {http.redacted(target.complete_url)}"
        state = _TransferState(
            what, target.complete_url, None, cancel, 0.0, count_bytes=self._count_bytes
        )

        def blocks(file: BufferedReader, size: int) -> Iterator[memoryview]:
            return _blocks(file, size, state)

        with MultipartUpload(self._http, path, target, blocks, renew) as parts:
            if renew is not None:
                state.renew = parts.renew_target
            while not parts.completed:
                state.deadline = time.monotonic() + self._settings.total_s
                state.raise_if_over()
                self._try(state, parts.step)
        return state.moved

    def _verify(self, state: _TransferState, target: _PartFile, sha256: str) -> None:
        if target.digest.hexdigest() != sha256:
            # what an earlier call, version or answer left may be wrong: once more, the whole
            target.restart()
            self._fetch_rest(state, target, None)
        if target.digest.hexdigest() != sha256:
            target.restart()
            raise Corrupt(f"{state.what}: the object does not have the sha256 {sha256}")

    def _fetch_rest(
        self, state: _TransferState, target: _PartFile, source: EarlierReader | None
    ) -> None:
        while target.done < target.size:
            end = target.size
            if source is not None:
                for block in source.read_unchanged(target.done):
                    target.add(block)
                end = source.fetch_until(target.done)
            if target.done < end:
                self._try(state, partial(self._fetch, state, target, end))

    def _fetch(self, state: _TransferState, target: _PartFile, end: int) -> None:
        """Write what arrives; return after any progress, so that the attempts are counted anew."""
        state.raise_if_over()
        before = target.done
        try:
            last = None if end == target.size else end
            with http.fetch(self._http, state.url, start=target.done, end=last) as answer:
                target.prepare_for(answer.start, answer.length, end)
                while block := answer.read_some(http.BLOCK_BYTES):
                    state.count(len(block))
                    target.add(block)
        except Unavailable:
            if target.done <= before:
                raise

    def _send(
        self, state: _TransferState, file: BufferedReader, size: int, headers: Mapping[str, str]
    ) -> None:
        state.raise_if_over()
        file.seek(0)
        http.send(self._http, state.url, _blocks(file, size, state), size, headers)

    def _try(self, state: _TransferState, attempt: Callable[[], None]) -> None:
        left_s = max(0.0, state.deadline - time.monotonic())
        policy = retrying((Unavailable,), attempts=self._settings.attempts, total_s=left_s)
        if state.cancel is not None:
            policy = policy.copy(sleep=tenacity.sleep_using_event(state.cancel))
        try:
            policy(attempt)
        except AccessDenied:
            if state.renew is None:
                raise
            # once for each piece of progress: a long transfer may need several URLs
            state.url = state.renew()
            policy(attempt)


@dataclass
class _TransferState:
    """The URL, limits and byte count of one call."""

    what: str
    url: str
    renew: RenewUrl | None
    cancel: threading.Event | None
    deadline: float
    moved: int = 0
    on_progress: OnProgress | None = None
    count_bytes: Callable[[int], None] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, size: int) -> None:
        """Count transferred bytes; any thread of the transfer calls it."""
        with self._lock:
            self.moved += size
        if self.count_bytes is not None:
            self.count_bytes(size)

    def raise_if_over(self) -> None:
        """Raise when the transfer is cancelled or out of time."""
        if self.cancel is not None and self.cancel.is_set():
            raise Cancelled(f"{self.what}: cancelled after {self.moved} bytes")
        if time.monotonic() > self.deadline:
            raise Unavailable(f"{self.what}: out of time after {self.moved} bytes")


@dataclass
class _PartFile:
    """The part file, with the hash of its bytes."""

    file: BinaryIO
    size: int
    state: _TransferState
    done: int = 0
    digest: Any = field(default_factory=hashlib.sha256)

    def __post_init__(self) -> None:
        if os.fstat(self.file.fileno()).st_size > self.size:
            self.restart()
        self.file.seek(0)
        while block := self.file.read(http.BLOCK_BYTES):
            self.state.raise_if_over()
            self.digest.update(block)
            self.done += len(block)

    def restart(self) -> None:
        self.file.seek(0)
        self.file.truncate()
        self.digest = hashlib.sha256()
        self.done = 0

    def prepare_for(self, start: int, length: int, end: int) -> None:
        """Check that an answer has the bytes up to ``end``; a whole object starts the file anew."""
        whole = (start, length) == (0, self.size)
        if (start, start + length) != (self.done, end) and not whole:
            raise Corrupt(
                f"{self.state.what}: {length} bytes from {start} where {end - self.done} "
                f"from {self.done} were asked for"
            )
        if start != self.done:
            self.restart()

    def add(self, block: bytes) -> None:
        self.file.write(block)
        self.digest.update(block)
        self.done += len(block)
        if self.state.on_progress is not None:
            self.state.on_progress(self.done)
        self.state.raise_if_over()


def _open_part(part: Path) -> BinaryIO:
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    return os.fdopen(descriptor, "r+b")


def _hash(path: Path, state: _TransferState) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(http.BLOCK_BYTES):
            state.raise_if_over()
            digest.update(block)
    return digest.hexdigest()


def _blocks(file: BufferedReader, size: int, state: _TransferState) -> Iterator[memoryview]:
    """Yield the next bytes of a file; a block is valid until the next one is requested."""
    left = size
    buffer = memoryview(bytearray(min(size, http.PIECE_BYTES)))
    while left:
        state.raise_if_over()
        count = file.readinto(buffer[: min(left, len(buffer))])
        if not count:
            raise Corrupt(f"{state.what}: the file lost {left} of its {size} bytes meanwhile")
        yield buffer[:count]
        left -= count
        state.count(count)
