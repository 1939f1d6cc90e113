"""Updates: a flat float32 vector to a stream of verified chunks, and back, block by block.

A run of zeros in a delta is a chunk of no bytes, whatever the codec. A negative zero may come back
as a positive one, which makes no difference to a sum.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Protocol, runtime_checkable

import numpy as np

from runtime.errors import ConfigError, Corrupt
from storage import codecs
from storage.codecs.base import Buffer, Codec
from storage.updates.info import (
    MAX_CHUNK_PARAMS,
    MAX_CHUNKS,
    NOTHING_SHA256,
    Block,
    UpdateInfo,
    encode_header,
)
from storage.updates.zero_runs import GRAIN, zero_runs
from storage.weights import Reader, Vector

if TYPE_CHECKING:
    from storage.updates.header import Chunk, UpdateHeader

CHUNK_PARAMS = 1 << 20
_ZEROS = 1 << 18
_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class WrittenUpdate:
    """What the result message says about a written update."""

    header_sha256: str
    size_bytes: int


@runtime_checkable
class ReaderInto(Protocol):
    """A stream that fills the caller's buffer."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Fill the start of ``buffer`` and return how much; 0 at the end."""
        ...


def write_update(
    out: BinaryIO,
    info: UpdateInfo,
    *vectors: Vector,
    codec: str = "float32",
    chunk_params: int = CHUNK_PARAMS,
) -> WrittenUpdate:
    """Write an update of flat float32 vectors, one for each section, or the update alone.

    The encoded chunks stay in memory until the header is known: no memory for float32, whose bytes
    are the vector's own, and less than the vector's for a codec that compresses.

    Raises:
        Corrupt: a parameter is not finite; the text has its index.
        ConfigError: no such codec, or a chunk size that a reader would refuse.
    """
    sizes = [vector.size for vector in vectors]
    if not 1 <= chunk_params <= MAX_CHUNK_PARAMS or sum(sizes) > MAX_CHUNKS * chunk_params:
        raise ConfigError(f"{sum(sizes)} parameters do not go into chunks of {chunk_params}")
    if [section.count for section in info.sections] not in ([], sizes) or not (
        info.sections or len(vectors) == 1
    ):
        raise ConfigError(f"vectors of {sizes} parameters for sections {info.sections}")
    encoder = codecs.load(codec)
    encoded: list[Buffer] = []
    chunks: list[Block] = []
    for vector in vectors:
        most = (MAX_CHUNKS - sum(1 + size // chunk_params for size in sizes)) // 2
        for start, end, is_zero in _spans(vector, chunk_params, info, most // len(vectors)):
            if is_zero:
                chunks.append(Block(0, end - start, NOTHING_SHA256))
                continue
            block = vector[start:end]
            _require_finite(block, start, f"update of {info.device_id}")
            data = encoder.encode(block)
            digest = hashlib.sha256(data).hexdigest()
            encoded.append(data)
            chunks.append(Block(memoryview(data).nbytes, block.size, digest))
    start_bytes = encode_header(info, codec, chunks)
    out.write(start_bytes)
    for data in encoded:
        out.write(data)
    digest = hashlib.sha256(start_bytes).hexdigest()
    return WrittenUpdate(digest, len(start_bytes) + sum(chunk.size for chunk in chunks))


def _spans(
    vector: Vector, chunk_params: int, info: UpdateInfo, most: int
) -> Iterator[tuple[int, int, bool]]:
    """Yield the chunks' (start, end, is_zero).

    Args:
        most: so many runs of zeros become chunks of their own; each may add two chunks to those of
            a vector without runs.
    """
    runs: list[tuple[int, int]] = []
    if info.kind == "delta" and most > 0:
        runs = zero_runs(vector, most, min(GRAIN, chunk_params))
    position = 0
    for start, end in [*runs, (vector.size, vector.size)]:
        yield from _cut(position, start, chunk_params, is_zero=False)
        yield from _cut(start, end, MAX_CHUNK_PARAMS, is_zero=True)
        position = end


def _cut(start: int, end: int, size: int, *, is_zero: bool) -> Iterator[tuple[int, int, bool]]:
    for first in range(start, end, size):
        yield first, min(first + size, end), is_zero


def verified_blocks(
    stream: Reader, header: UpdateHeader, layout_size: int, *, key: str = "update"
) -> Iterator[Vector]:
    """Yield the vector's blocks in order, each verified, decoded and finite.

    A block may share its buffer with the next: it is valid until the next is requested, and must
    not be changed. Nothing of an update may be used for good before the iterator has ended without
    an error.

    Raises:
        Corrupt: a chunk is not what the header says, is not finite, or bytes follow the last.
    """
    if header.parameters != layout_size:
        raise Corrupt(f"{key}: {header.parameters} parameters, the layout has {layout_size}")
    try:
        decoder = codecs.load(header.codec)
    except ConfigError as error:
        raise Corrupt(f"{key}: {error}") from error
    _check_sizes(header, decoder, key)
    buffer = memoryview(bytearray(max((chunk.size for chunk in header.chunks), default=0)))
    zeros = _read_only_zeros(header)
    start = 0
    for index, chunk in enumerate(header.chunks):
        if chunk.is_zero:
            for offset in range(0, chunk.count, _ZEROS):
                yield zeros[: chunk.count - offset]
            start += chunk.count
            continue
        data = buffer[: chunk.size]
        digest = _fill(stream, data, f"{key}: chunk {index}")
        if digest != chunk.sha256:
            raise Corrupt(f"{key}: chunk {index} has sha256 {digest}, not {chunk.sha256}")
        block = _decoded(decoder, data, chunk, f"{key}: chunk {index}")
        _require_finite(block, start, key)
        yield block
        start += chunk.count
    if stream.read(1):
        raise Corrupt(f"{key}: bytes follow the last chunk")


def _read_only_zeros(header: UpdateHeader) -> Vector:
    most = max((chunk.count for chunk in header.chunks if chunk.is_zero), default=0)
    zeros = np.zeros(min(most, _ZEROS), np.float32)
    zeros.flags.writeable = False
    return zeros


def _check_sizes(header: UpdateHeader, decoder: Codec, key: str) -> None:
    for index, chunk in enumerate(header.chunks):
        if chunk.size > decoder.max_bytes(chunk.count):
            raise Corrupt(f"{key}: chunk {index} takes {chunk.size} bytes for {chunk.count}")


def _decoded(decoder: Codec, data: memoryview, chunk: Chunk, what: str) -> Vector:
    try:
        block = decoder.decode(data, chunk.count)
    except Corrupt as error:
        raise Corrupt(f"{what}: {error}") from error
    if block.size != chunk.count:
        raise Corrupt(f"{what}: decodes to {block.size} parameters, not {chunk.count}")
    return block


def _require_finite(block: Vector, start: int, what: str) -> None:
    finite = np.isfinite(block)
    if not finite.all():
        raise Corrupt(f"{what}: parameter {start + int(np.argmin(finite))} is not finite")


def _fill(stream: Reader, target: memoryview, what: str) -> str:
    """Fill the target and return its sha256, hashed while each piece is in the cache."""
    digest, done = hashlib.sha256(), 0
    while done < len(target):
        rest = target[done : done + _READ_BYTES]
        if isinstance(stream, ReaderInto):
            count = stream.readinto(rest) or 0
        else:
            part = stream.read(len(rest))
            count = len(part)
            rest[:count] = part
        if not count:
            raise Corrupt(f"{what} is cut off after {done} of {len(target)} bytes")
        digest.update(rest[:count])
        done += count
    return digest.hexdigest()
