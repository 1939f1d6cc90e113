"""Updates in one file: what a domain passes on where its parent needs each and not their sum.

The body is whole updates, one after the other, as their devices wrote them, but for the order that
they answer and the names of the devices. A reader checks each as if it had come alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import BinaryIO

import msgpack

from runtime.errors import ConfigError, Corrupt
from storage.updates.header import (
    MAX_CHUNK_BYTES,
    ForwardedEntry,
    ForwardedUpdates,
    UpdateHeader,
    read_header,
)
from storage.updates.info import MAGIC, MAX_HEADER_BYTES, PREFIX, Origin
from storage.updates.stream import WrittenUpdate
from storage.weights import Reader

CODEC = "files"
_COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class ForwardedInfo:
    """What a domain states beside the updates."""

    num_examples: int
    metrics: dict[str, float]
    population: int


class Within:
    """The next ``size`` bytes of a stream, as a stream of their own."""

    def __init__(self, stream: Reader, size: int) -> None:
        self._stream, self._left = stream, size

    def read(self, size: int = -1, /) -> bytes:
        """Return at most so many bytes, none at the end."""
        data = self._stream.read(min(self._left, _COPY_BYTES if size < 0 else size))
        self._left -= len(data)
        return data

    def skip(self) -> None:
        """Read what is left of it."""
        while self.read():
            pass


class ForwardedWriter:
    """Writes updates to a file: first the updates, to a file that is read again.

    Args:
        body: where they lie until the header is known, which goes before them.
    """

    def __init__(self, body: BinaryIO) -> None:
        self._body = body
        self._entries: list[ForwardedEntry] = []
        self._names: set[str] = set()

    def add(self, stream: Reader, header: UpdateHeader, name: str) -> None:
        """Add an update, or all that a domain below has passed on, after its header was read.

        Args:
            stream: at its first chunk.
            name: what its device is called above.
        """
        if header.forwarded is None:
            self._add(stream, header, name)
            return
        for entry, part in entries_of(stream, header):
            inner = read_header(
                part,
                header_sha256=entry.header_sha256,
                max_bytes=entry.size,
                key=f"the update of {entry.device_id}",
            )
            self._add(part, inner, entry.device_id)

    def _add(self, stream: Reader, header: UpdateHeader, name: str) -> None:
        if name in self._names:
            # a device of another domain has it, too
            name = hashlib.sha256(f"{len(self._names)}/{name}".encode()).hexdigest()[:32]
        self._names.add(name)
        start = encoded(header.model_copy(update={"device_id": name}))
        self._body.write(start)
        size = len(start)
        while data := stream.read(_COPY_BYTES):
            self._body.write(data)
            size += len(data)
        self._entries.append(
            ForwardedEntry(
                device_id=name,
                attempt=header.attempt,
                size=size,
                header_sha256=hashlib.sha256(start).hexdigest(),
                num_examples=header.num_examples,
            )
        )

    def finish(self, out: BinaryIO, origin: Origin, info: ForwardedInfo) -> WrittenUpdate:
        """Write the whole file.

        Raises:
            ConfigError: there are more updates than a header may hold.
        """
        self._body.seek(0)
        chunks, left = [], sum(entry.size for entry in self._entries)
        while left:
            size = min(left, MAX_CHUNK_BYTES)
            digest, wanted = hashlib.sha256(), size
            while wanted:
                data = self._body.read(min(wanted, _COPY_BYTES))
                digest.update(data)
                wanted -= len(data)
            chunks.append({"size": size, "count": 1, "sha256": digest.hexdigest()})
            left -= size
        header = UpdateHeader.model_validate(
            {
                **asdict(origin),
                "num_examples": info.num_examples,
                "metrics": info.metrics,
                "codec": CODEC,
                "chunks": chunks,
                "forwarded": ForwardedUpdates(
                    entries=tuple(self._entries),
                    population=max(info.population, len(self._entries)),
                ),
            }
        )
        self._body.seek(0)
        return written(out, header, self._body)


def entries_of(stream: Reader, header: UpdateHeader) -> Iterator[tuple[ForwardedEntry, Within]]:
    """Yield each update with its bytes; what a reader leaves of one is skipped."""
    assert header.forwarded is not None
    for entry in header.forwarded.entries:
        part = Within(stream, entry.size)
        yield entry, part
        part.skip()
    if stream.read(1):
        raise Corrupt("bytes follow the last update")


def encoded(header: UpdateHeader) -> bytes:
    """Return everything before the chunks; ConfigError where it is too long."""
    fields = header.model_dump(mode="json")
    for name in ("sections", "sums", "forwarded"):
        if not fields[name]:
            del fields[name]
    text: bytes = msgpack.packb(fields, use_bin_type=True)
    if len(text) > MAX_HEADER_BYTES:
        raise ConfigError(
            f"the rows of a domain's devices take {len(text)} bytes, at most {MAX_HEADER_BYTES}; "
            "take fewer devices into a round, or divide the domain"
        )
    return PREFIX.pack(MAGIC, len(text)) + text


def written(out: BinaryIO, header: UpdateHeader, chunks: Reader) -> WrittenUpdate:
    """Write a header and the chunks behind it."""
    start = encoded(header)
    out.write(start)
    size = len(start)
    while data := chunks.read(_COPY_BYTES):
        out.write(data)
        size += len(data)
    return WrittenUpdate(hashlib.sha256(start).hexdigest(), size)


def answering(source: Reader, header: UpdateHeader, origin: Origin, out: BinaryIO) -> WrittenUpdate:
    """Write what a domain has made as the answer to another order.

    Args:
        source: the file, read up to its first chunk.
        header: that file's.
        origin: which order it answers from here on.
    """
    return written(out, header.model_copy(update=asdict(origin)), source)


def read_whole(stream: BinaryIO, key: str) -> UpdateHeader:
    """Return the header of a file whose own hash was verified; the stream is at the first chunk.

    Raises:
        Corrupt: it is no update.
    """
    prefix = stream.read(PREFIX.size)
    length = PREFIX.unpack(prefix)[1] if len(prefix) == PREFIX.size else 0
    digest = hashlib.sha256(prefix + stream.read(min(length, MAX_HEADER_BYTES))).hexdigest()
    size = stream.seek(0, 2)
    stream.seek(0)
    return read_header(stream, header_sha256=digest, max_bytes=size, key=key)
