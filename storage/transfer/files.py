"""The device's side of the store: files to and from presigned URLs, without credentials.

A download goes into ``<name>.part`` beside its place, goes on from there after any cut or restart,
and gets its name only when its sha256 is right. No ETag is asked to match on the way: the sha256
covers the whole file, whatever stood behind the URL.
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
from storage.transfer.byte_ranges import Earlier, Source, opened
from storage.transfer.multipart import PartsPlace
from storage.transfer.multipart_upload import MultipartUpload, RenewPlace

if TYPE_CHECKING:
    import urllib3

Renew = Callable[[], str]
Watch = Callable[[int], None]
"""Called with the bytes that are there after each block; what it raises ends the transfer."""


class Cancelled(StorageError):
    """The owner asked for the transfer to end; what has come is kept for the next call."""


@dataclass(frozen=True)
class TransferSettings:
    """How patient a transfer is.

    Attributes:
        attempts: tries in a row that move no byte.
        total_s: the most that one transfer may take in all.
        read_s: the longest silence of the store.
    """

    attempts: int = 6
    total_s: float = 900.0
    connect_s: float = 5.0
    read_s: float = 30.0


class Transfers:
    """Downloads and uploads over a shared pool of connections. Safe for use by many threads.

    Args:
        settings: how patient they are.
        tls: whom to trust behind https URLs; None trusts the system's authorities.
        count_bytes: is told of bytes as they move, on the threads that move them.

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
            tls.context()  # what is not usable is told now, and not at the first transfer

    @cached_property
    def _http(self) -> urllib3.PoolManager:
        """The connections, made with the first transfer."""
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
        renew: Renew | None = None,
        cancel: threading.Event | None = None,
        watch: Watch | None = None,
        earlier: Earlier | None = None,
    ) -> int:
        """Bring the object to ``path`` and return the bytes that were moved for it.

        Nothing is moved when the file is there and right. Blocks the calling thread. The file is
        not forced to the disk: after a power cut this call finds out what it is worth.

        Args:
            url: a presigned GET.
            path: where the file goes; its folder must exist.
            sha256: in hex, of the whole file.
            size: of the whole file, in bytes.
            renew: asked for another URL when the store refuses this one.
            cancel: looked at between blocks and during waits.
            watch: told how much of the file is there.
            earlier: a file from which what has not changed is taken, as long as it is of use.

        Raises:
            Corrupt: the object is not that file, also when fetched afresh.
            AccessDenied: a URL was refused, and so was the renewed one.
            NotFound: no such object.
            Unavailable: too many tries moved no byte, or the time is over.
            StorageError: the store's certificate was refused; says what a person must do.
            Cancelled: ``cancel`` was set.
        """
        what = f"GET {http.place(url)}"
        deadline = time.monotonic() + self._settings.total_s
        journey = _Journey(
            what, url, renew, cancel, deadline, watch=watch, count_bytes=self._count_bytes
        )
        if path.is_file() and path.stat().st_size == size and _hash(path, journey) == sha256:
            return 0
        part = path.with_name(f"{path.name}.part")
        with _open_part(part) as file:
            target = _Target(file, size, journey)
            with opened(earlier, size) as source:
                self._fetch_rest(journey, target, source)
            self._require_right(journey, target, sha256)
        part.replace(path)
        return journey.moved

    def upload(
        self,
        url: str,
        path: Path,
        *,
        headers: Mapping[str, str] | None = None,
        renew: Renew | None = None,
        cancel: threading.Event | None = None,
    ) -> int:
        """Send the file to a presigned PUT and return the bytes that were moved for it.

        Args:
            url: a presigned PUT.
            path: the file.
            headers: those that are signed into the URL, and into the renewed ones.
            renew: asked for another URL when the store refuses this one.
            cancel: looked at between blocks and during waits.

        Raises:
            AccessDenied, NotFound, Unavailable, StorageError, Cancelled: as for :meth:`download`.
            Corrupt: the file changed its size meanwhile.
        """
        what = f"PUT {http.place(url)}"
        deadline = time.monotonic() + self._settings.total_s
        journey = _Journey(what, url, renew, cancel, deadline, count_bytes=self._count_bytes)
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            self._persist(journey, lambda: self._send(journey, file, size, headers or {}))
        return journey.moved

    def upload_in_parts(
        self,
        place: PartsPlace,
        path: Path,
        *,
        renew: RenewPlace | None = None,
        cancel: threading.Event | None = None,
    ) -> int:
        """Send a large file in parts and return the bytes that were moved for it.

        What has arrived is kept beside the file, so that a new process sends only the rest.

        Args:
            place: where the parts go.
            path: the file; ``path.parts`` beside it is written meanwhile and stays.
            renew: asked for fresh URLs when the store refuses one, or has lost the upload.
            cancel: looked at between blocks and during waits.

        Raises:
            AccessDenied, NotFound, Unavailable, StorageError, Cancelled: as for :meth:`download`;
                the time is counted from the last part that arrived.
            Corrupt: the file changed its size meanwhile, or the store keeps losing parts.
        """
        what = f"PUT {http.place(place.complete_url)}"
        journey = _Journey(
            what, place.complete_url, None, cancel, 0.0, count_bytes=self._count_bytes
        )

        def blocks(file: BufferedReader, size: int) -> Iterator[memoryview]:
            return _blocks(file, size, journey)

        with MultipartUpload(self._http, path, place, blocks, renew) as parts:
            if renew is not None:
                journey.renew = parts.renewed
            while not parts.completed:
                journey.deadline = time.monotonic() + self._settings.total_s
                journey.check()
                self._persist(journey, parts.step)
        return journey.moved

    def _require_right(self, journey: _Journey, target: _Target, sha256: str) -> None:
        if target.digest.hexdigest() != sha256:
            # what an earlier call, file or answer left may be what is wrong: once more, whole
            target.restart()
            self._fetch_rest(journey, target, None)
        if target.digest.hexdigest() != sha256:
            target.restart()
            raise Corrupt(f"{journey.what}: the object does not have the sha256 {sha256}")

    def _fetch_rest(self, journey: _Journey, target: _Target, source: Source | None) -> None:
        while target.done < target.size:
            end = target.size
            if source is not None:
                for block in source.unchanged(target.done):
                    target.add(block)
                end = source.fetch_until(target.done)
            if target.done < end:
                self._persist(journey, partial(self._fetch, journey, target, end))

    def _fetch(self, journey: _Journey, target: _Target, end: int) -> None:
        """Move what comes; return after any progress, so that the tries begin anew."""
        journey.check()
        before = target.done
        try:
            last = None if end == target.size else end
            with http.fetch(self._http, journey.url, start=target.done, end=last) as answer:
                target.align(answer.start, answer.length, end)
                while block := answer.read_some(http.BLOCK_BYTES):
                    journey.count(len(block))
                    target.add(block)
        except Unavailable:
            if target.done <= before:
                raise

    def _send(
        self, journey: _Journey, file: BufferedReader, size: int, headers: Mapping[str, str]
    ) -> None:
        journey.check()
        file.seek(0)
        http.send(self._http, journey.url, _blocks(file, size, journey), size, headers)

    def _persist(self, journey: _Journey, attempt: Callable[[], None]) -> None:
        left_s = max(0.0, journey.deadline - time.monotonic())
        policy = retrying((Unavailable,), attempts=self._settings.attempts, total_s=left_s)
        if journey.cancel is not None:
            policy = policy.copy(sleep=tenacity.sleep_using_event(journey.cancel))
        try:
            policy(attempt)
        except AccessDenied:
            if journey.renew is None:
                raise
            # once here, and again only after progress: a long transfer may outlive several URLs
            journey.url = journey.renew()
            policy(attempt)


@dataclass
class _Journey:
    """One call's URL, limits and count."""

    what: str
    url: str
    renew: Renew | None
    cancel: threading.Event | None
    deadline: float
    moved: int = 0
    watch: Watch | None = None
    count_bytes: Callable[[int], None] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, size: int) -> None:
        """Count bytes that were moved; any thread of the transfer calls it."""
        with self._lock:
            self.moved += size
        if self.count_bytes is not None:
            self.count_bytes(size)

    def check(self) -> None:
        if self.cancel is not None and self.cancel.is_set():
            raise Cancelled(f"{self.what}: cancelled after {self.moved} bytes")
        if time.monotonic() > self.deadline:
            raise Unavailable(f"{self.what}: out of time after {self.moved} bytes")


@dataclass
class _Target:
    """The part file, with the hash of what it holds."""

    file: BinaryIO
    size: int
    journey: _Journey
    done: int = 0
    digest: Any = field(default_factory=hashlib.sha256)

    def __post_init__(self) -> None:
        if os.fstat(self.file.fileno()).st_size > self.size:
            self.restart()
        self.file.seek(0)
        while block := self.file.read(http.BLOCK_BYTES):
            self.journey.check()
            self.digest.update(block)
            self.done += len(block)

    def restart(self) -> None:
        self.file.seek(0)
        self.file.truncate()
        self.digest = hashlib.sha256()
        self.done = 0

    def align(self, start: int, length: int, end: int) -> None:
        """Make ready for bytes from ``start`` up to ``end``: all where the store ignores ranges."""
        whole = (start, length) == (0, self.size)
        if (start, start + length) != (self.done, end) and not whole:
            raise Corrupt(
                f"{self.journey.what}: {length} bytes from {start} where {end - self.done} "
                f"from {self.done} were asked for"
            )
        if start != self.done:
            self.restart()

    def add(self, block: bytes) -> None:
        self.file.write(block)
        self.digest.update(block)
        self.done += len(block)
        if self.journey.watch is not None:
            self.journey.watch(self.done)
        self.journey.check()


def _open_part(part: Path) -> BinaryIO:
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    return os.fdopen(descriptor, "r+b")


def _hash(path: Path, journey: _Journey) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(http.BLOCK_BYTES):
            journey.check()
            digest.update(block)
    return digest.hexdigest()


def _blocks(file: BufferedReader, size: int, journey: _Journey) -> Iterator[memoryview]:
    """Yield the next bytes of a file; each block is good until the next one is asked for."""
    left = size
    buffer = memoryview(bytearray(min(size, http.PIECE_BYTES)))
    while left:
        journey.check()
        count = file.readinto(buffer[: min(left, len(buffer))])
        if not count:
            raise Corrupt(f"{journey.what}: the file lost {left} of its {size} bytes meanwhile")
        yield buffer[:count]
        left -= count
        journey.count(count)
