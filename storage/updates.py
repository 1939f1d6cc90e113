"""Updates on the wire: a header with the hash of every chunk, then the chunks.

The file is ``RGU1``, the header's length (u32, big-endian), the header in msgpack, and the chunks
end to end. The result message carries the sha256 of all that stands before the chunks, and the
header that of each chunk, so a reader uses no byte that it has not verified.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, BinaryIO, Literal, Protocol, runtime_checkable

import msgpack
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from runtime.errors import ConfigError, Corrupt
from storage import codecs
from storage.codecs.base import Buffer, Codec
from storage.weights import Reader, Vector

MAGIC = b"RGU1"
MAX_HEADER_BYTES = 1 << 20
MAX_CHUNKS = 8192
MAX_CHUNK_PARAMS = 1 << 22
MAX_CHUNK_BYTES = 4 * MAX_CHUNK_PARAMS
CHUNK_PARAMS = 1 << 20
_PREFIX = struct.Struct(">4sI")
_READ_BYTES = 1 << 20

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,64}$")]
Finite = Annotated[float, Field(allow_inf_nan=False)]
_STRICT = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class Chunk(BaseModel):
    """One block of the vector: its bytes, its parameters and the hash of its bytes."""

    model_config = _STRICT
    size: int = Field(ge=0, le=MAX_CHUNK_BYTES)
    count: int = Field(ge=1, le=MAX_CHUNK_PARAMS)
    sha256: Sha256


class Origin(BaseModel):
    """What an update answers: which order of which round, on which model, by whom."""

    model_config = _STRICT
    run_id: Name
    round: int = Field(ge=0, le=1 << 32)
    attempt: int = Field(ge=0, le=1 << 32)
    device_id: Name
    base_sha256: Sha256
    layout_hash: Sha256
    kind: Literal["delta", "weights"]


class UpdateInfo(Origin):
    """What a device says about its update."""

    num_examples: int = Field(ge=1, le=1 << 48)
    metrics: dict[Annotated[str, Field(min_length=1, max_length=64)], Finite] = Field(
        default_factory=dict, max_length=64
    )


class UpdateHeader(UpdateInfo):
    """The header as it stands in the file."""

    # not Literal[1], which takes 1.0 and True
    schema_version: int = Field(default=1, ge=1, le=1)
    codec: Name
    # a list where it is decoded, so the tuple is taken leniently; each chunk stays strict
    chunks: tuple[Chunk, ...] = Field(max_length=MAX_CHUNKS, strict=False)

    @property
    def parameters(self) -> int:
        """The number of parameters in all chunks."""
        return sum(chunk.count for chunk in self.chunks)

    @property
    def chunk_bytes(self) -> int:
        """The size of all chunks."""
        return sum(chunk.size for chunk in self.chunks)


@dataclass(frozen=True)
class WrittenUpdate:
    """What the result message says of a written update."""

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
    vector: Vector,
    *,
    codec: str = "float32",
    chunk_params: int = CHUNK_PARAMS,
) -> WrittenUpdate:
    """Write an update of a flat float32 vector.

    Holds the encoded chunks until the header is known: nothing for float32, whose bytes are the
    vector's own, and less than the vector for a codec that compresses.

    Raises:
        Corrupt: a parameter is not finite; the text gives its place.
        ConfigError: no such codec, or a chunk size that a reader would refuse.
    """
    if not 1 <= chunk_params <= MAX_CHUNK_PARAMS or vector.size > MAX_CHUNKS * chunk_params:
        raise ConfigError(f"{vector.size} parameters do not go into chunks of {chunk_params}")
    encoder = codecs.load(codec)
    encoded: list[Buffer] = []
    chunks: list[Chunk] = []
    for start in range(0, vector.size, chunk_params):
        block = vector[start : start + chunk_params]
        _require_finite(block, start, f"update of {info.device_id}")
        data = encoder.encode(block)
        digest = hashlib.sha256(data).hexdigest()
        encoded.append(data)
        chunks.append(Chunk(size=memoryview(data).nbytes, count=block.size, sha256=digest))
    header = UpdateHeader(**info.model_dump(), codec=codec, chunks=tuple(chunks))
    start_bytes = _encode_header(header)
    out.write(start_bytes)
    for data in encoded:
        out.write(data)
    digest = hashlib.sha256(start_bytes).hexdigest()
    return WrittenUpdate(digest, len(start_bytes) + header.chunk_bytes)


def read_header(
    stream: Reader, *, header_sha256: str, max_bytes: int, key: str = "update"
) -> UpdateHeader:
    """Read the header and leave the stream at the first chunk.

    Args:
        stream: from the first byte of the file.
        header_sha256: as the result message gave it.
        max_bytes: the most that the whole update may take.
        key: the object's key, for messages.

    Raises:
        Corrupt: not that header, or a header that breaks a bound.
    """
    prefix = _read(stream, _PREFIX.size, f"{key}: the header's length")
    magic, length = _PREFIX.unpack(prefix)
    if magic != MAGIC:
        raise Corrupt(f"{key}: does not begin as an update")
    if length > MAX_HEADER_BYTES:
        raise Corrupt(f"{key}: a header of {length} bytes, at most {MAX_HEADER_BYTES}")
    text = _read(stream, length, f"{key}: the header")
    digest = hashlib.sha256(prefix + text).hexdigest()
    if digest != header_sha256:
        raise Corrupt(f"{key}: the header has sha256 {digest}, the result named {header_sha256}")
    header = _decode_header(text, key)
    if len(prefix) + length + header.chunk_bytes > max_bytes:
        raise Corrupt(f"{key}: {header.chunk_bytes} bytes of chunks, at most {max_bytes} in all")
    return header


def require_origin(header: UpdateHeader, expected: Origin, key: str = "update") -> None:
    """Raise Corrupt, naming the field, when the update does not answer the expected order."""
    for field in Origin.model_fields:
        found, wanted = getattr(header, field), getattr(expected, field)
        if found != wanted:
            raise Corrupt(f"{key}: its {field} is {found!r}, expected {wanted!r}")


def verified_blocks(
    stream: Reader, header: UpdateHeader, layout_size: int, *, key: str = "update"
) -> Iterator[Vector]:
    """Yield the vector's blocks in order, each verified, decoded and finite.

    A block may share one buffer with the next: it holds only until the next is asked for. Nothing
    may be kept of an update before the iterator has ended without an error.

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
    start = 0
    for index, chunk in enumerate(header.chunks):
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


def _encode_header(header: UpdateHeader) -> bytes:
    text: bytes = msgpack.packb(header.model_dump(), use_bin_type=True)
    if len(text) > MAX_HEADER_BYTES:
        raise ConfigError(f"an update's header of {len(text)} bytes, at most {MAX_HEADER_BYTES}")
    return _PREFIX.pack(MAGIC, len(text)) + text


def _unique(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _decode_header(text: bytes, key: str) -> UpdateHeader:
    try:
        # the bounds matter before the model sees anything: msgpack allocates what a length claims
        fields = msgpack.unpackb(
            text,
            raw=False,
            object_pairs_hook=_unique,
            max_array_len=MAX_CHUNKS,
            max_map_len=128,
            max_str_len=4096,
            max_bin_len=0,
            max_ext_len=0,
        )
        return UpdateHeader.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part)[:64] for part in first["loc"]) or "the whole"
        raise Corrupt(f"{key}: header field {where}: {first['msg']}") from error
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise Corrupt(f"{key}: the header is not msgpack of the right form") from error


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


def _read(stream: Reader, size: int, what: str) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = stream.read(min(size - len(data), _READ_BYTES))
        if not part:
            raise Corrupt(f"{what} is cut off after {len(data)} of {size} bytes")
        data += part
    return bytes(data)


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
