"""The header of an update: the order that it answers, and the hash of every chunk. No numpy.

The file is ``RGU1``, the header's length (u32, big-endian), the header in msgpack, and the chunks
end to end. The result message has the sha256 of everything before the chunks, and the header that
of each chunk, so that a reader uses no unverified byte. In a delta, a chunk of no bytes means as
many zeros as its count says.
"""

from __future__ import annotations

import hashlib
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import msgpack
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from runtime.bounds import (
    MAX_EXAMPLES,
    MAX_FINITE,
    MAX_METRIC_NAME,
    MAX_METRICS,
    MAX_POPULATION,
    MAX_SIZE,
)
from runtime.errors import Corrupt
from storage.updates.info import (
    MAGIC,
    MAX_CHUNK_PARAMS,
    MAX_CHUNKS,
    MAX_HEADER_BYTES,
    MAX_REPORTS,
    MAX_SECTIONS,
    MAX_SUM_BYTES,
    NOTHING_SHA256,
    PREFIX,
    SCHEMA_VERSION,
    SUM_BLOCK,
    Origin,
)

if TYPE_CHECKING:
    from storage.weights import Reader

MAX_CHUNK_BYTES = 4 * MAX_CHUNK_PARAMS
# the unit of a sum: below the smallest float32, and the size of the largest, as powers of two
_LEAST_UNIT, _REACH_BITS = -160, 128
_READ_BYTES = 1 << 20

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,64}$")]
Finite = Annotated[float, Field(ge=-MAX_FINITE, le=MAX_FINITE, allow_inf_nan=False)]
# built when first used: most devices need few of them
_STRICT = ConfigDict(
    strict=True, frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True
)


class Chunk(BaseModel):
    """One block of the vector: its size in bytes, its parameters and the hash of its bytes."""

    model_config = _STRICT
    size: int = Field(ge=0, le=MAX_CHUNK_BYTES)
    count: int = Field(ge=1, le=MAX_CHUNK_PARAMS)
    sha256: Sha256

    @property
    def is_zero(self) -> bool:
        """Whether it means zeros."""
        return self.size == 0


class SectionEntry(BaseModel):
    """A named part of the values: a vector, or a scalar of one value."""

    model_config = _STRICT
    name: Name
    count: int = Field(ge=1, le=MAX_CHUNKS * MAX_CHUNK_PARAMS)


class SumEntry(BaseModel):
    """The sum of one name's vectors, or scalars, and the sum of their weights, in decimal digits.

    Its chunks have ``SUM_BLOCK`` values each, the last one what is left.
    """

    model_config = _STRICT
    name: Name
    count: int = Field(ge=1, le=MAX_CHUNKS * SUM_BLOCK)
    weight: Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,31})$")]


class ReportColumns(BaseModel):
    """What a server knows of each update in the sums, one column for each thing.

    ``sums``: the bit ``1 << i`` says that the update is in the i-th sum.
    """

    model_config = _STRICT
    devices: tuple[Name, ...] = Field(min_length=1, max_length=MAX_REPORTS, strict=False)
    num_examples: tuple[Annotated[int, Field(ge=1, le=MAX_EXAMPLES)], ...] = Field(strict=False)
    sums: tuple[Annotated[int, Field(ge=0, lt=1 << MAX_SECTIONS)], ...] = Field(strict=False)
    scalars: dict[Name, Annotated[tuple[Finite, ...], Field(strict=False)]] = Field(
        default_factory=dict, max_length=MAX_SECTIONS
    )

    @model_validator(mode="after")
    def _columns_are_as_long(self) -> Self:
        columns = (self.num_examples, self.sums, *self.scalars.values())
        if any(len(column) != len(self.devices) for column in columns):
            raise ValueError("the columns of the reports are not as long as that of the devices")
        if len(set(self.devices)) != len(self.devices):
            raise ValueError("a device stands twice in the reports")
        return self


class ExactSums(BaseModel):
    """What the chunks of an update of the kind "sums" are: exact sums of updates, and whose.

    ``units`` are the powers of two that the chunks' whole numbers count, one for each chunk.
    ``population`` is how many devices the run knows below the sender.
    """

    model_config = _STRICT
    sums: tuple[SumEntry, ...] = Field(min_length=1, max_length=MAX_SECTIONS, strict=False)
    units: tuple[Annotated[int, Field(ge=_LEAST_UNIT, le=_REACH_BITS)], ...] = Field(
        max_length=MAX_CHUNKS, strict=False
    )
    reports: ReportColumns
    population: int = Field(ge=1, le=MAX_POPULATION)

    @model_validator(mode="after")
    def _fit_each_other(self) -> Self:
        if len({each.name for each in self.sums}) != len(self.sums):
            raise ValueError("two sums have one name")
        if any(each >> len(self.sums) for each in self.reports.sums):
            raise ValueError("a report names a sum that is not there")
        if self.population < len(self.reports.devices):
            raise ValueError("there are more reports than devices")
        return self

    def require_chunks(self, chunks: tuple[Chunk, ...]) -> None:
        """Raise ValueError unless the chunks are the sums', no larger than their weights allow."""
        expected = [
            (min(SUM_BLOCK, entry.count - start), int(entry.weight))
            for entry in self.sums
            for start in range(0, entry.count, SUM_BLOCK)
        ]
        if not len(chunks) == len(self.units) == len(expected):
            raise ValueError("the chunks are not those of the sums")
        for chunk, unit, (count, weight) in zip(chunks, self.units, expected, strict=True):
            width, rest = divmod(chunk.size, chunk.count)
            if chunk.count != count or rest or width > MAX_SUM_BYTES:
                raise ValueError("a chunk is not that of its sum")
            if width and unit + 8 * width > _REACH_BITS + weight.bit_length() + 8:
                raise ValueError("a sum is larger than its weight allows")


class ForwardedEntry(BaseModel):
    """A whole update within another: whose it is, and the hash of its own header."""

    model_config = _STRICT
    device_id: Name
    attempt: int = Field(ge=0, le=1 << 32)
    size: int = Field(ge=1, le=MAX_SIZE)
    header_sha256: Sha256
    num_examples: int = Field(ge=1, le=MAX_EXAMPLES)


class ForwardedUpdates(BaseModel):
    """What the chunks of an update of the kind "updates" are: whole updates, in order.

    ``population`` is how many devices the run knows below the sender.
    """

    model_config = _STRICT
    entries: tuple[ForwardedEntry, ...] = Field(min_length=1, max_length=MAX_REPORTS, strict=False)
    population: int = Field(ge=1, le=MAX_POPULATION)

    @model_validator(mode="after")
    def _are_of_different_devices(self) -> Self:
        if len({each.device_id for each in self.entries}) != len(self.entries):
            raise ValueError("two updates are of one device")
        if self.population < len(self.entries):
            raise ValueError("there are more updates than devices")
        return self


class UpdateHeader(BaseModel):
    """The header in the file."""

    model_config = _STRICT
    run_id: Name
    round: int = Field(ge=0, le=1 << 32)
    attempt: int = Field(ge=0, le=1 << 32)
    device_id: Name
    base_sha256: Sha256
    layout_hash: Sha256
    kind: Literal["delta", "weights", "sums", "updates"]
    num_examples: int = Field(ge=1, le=MAX_EXAMPLES)
    metrics: dict[Annotated[str, Field(min_length=1, max_length=MAX_METRIC_NAME)], Finite] = Field(
        default_factory=dict, max_length=MAX_METRICS
    )
    # not Literal[1], which accepts 1.0 and True
    schema_version: int = Field(default=SCHEMA_VERSION, ge=SCHEMA_VERSION, le=SCHEMA_VERSION)
    codec: Name
    # decoding gives a list: the tuple accepts one, each chunk is still strict
    chunks: tuple[Chunk, ...] = Field(max_length=MAX_CHUNKS, strict=False)
    sections: tuple[SectionEntry, ...] = Field(default=(), max_length=MAX_SECTIONS, strict=False)
    sums: ExactSums | None = None
    forwarded: ForwardedUpdates | None = None

    @model_validator(mode="after")
    def _sums_are_of_that_kind(self) -> Self:
        if (self.sums is None) != (self.kind != "sums"):
            raise ValueError("an update has sums if it is of that kind, and no other has")
        if self.sums is not None:
            if self.sections:
                raise ValueError("sums are not in sections")
            self.sums.require_chunks(self.chunks)
        return self

    @model_validator(mode="after")
    def _updates_are_of_that_kind(self) -> Self:
        if (self.forwarded is None) != (self.kind != "updates"):
            raise ValueError("an update holds updates if it is of that kind, and no other does")
        if self.forwarded is not None:
            if self.sections:
                raise ValueError("updates are not in sections")
            if sum(each.size for each in self.forwarded.entries) != self.chunk_bytes:
                raise ValueError("the chunks are not the updates")
            if any(chunk.is_zero for chunk in self.chunks):
                raise ValueError("a chunk of updates has no bytes")
        return self

    @model_validator(mode="after")
    def _zeros_are_of_a_change(self) -> Self:
        zeros = [chunk for chunk in self.chunks if chunk.is_zero]
        if zeros and self.kind == "weights":
            raise ValueError("only a delta and sums may have chunks of no bytes")
        if any(chunk.sha256 != NOTHING_SHA256 for chunk in zeros):
            raise ValueError("a chunk of no bytes has the sha256 of something")
        return self

    @model_validator(mode="after")
    def _sections_are_the_whole(self) -> Self:
        if len({section.name for section in self.sections}) != len(self.sections):
            raise ValueError("two sections have one name")
        if self.sections and sum(each.count for each in self.sections) != self.parameters:
            raise ValueError("the sections are not all of the values")
        return self

    @property
    def parameters(self) -> int:
        """The number of parameters in all chunks."""
        return sum(chunk.count for chunk in self.chunks)

    @property
    def chunk_bytes(self) -> int:
        """The size of all chunks."""
        return sum(chunk.size for chunk in self.chunks)


def read_header(
    stream: Reader, *, header_sha256: str, max_bytes: int, key: str = "update"
) -> UpdateHeader:
    """Read the header and leave the stream at the first chunk.

    Args:
        stream: from the first byte of the file.
        header_sha256: as the result message gave it.
        max_bytes: the most that the whole update may have.
        key: the object's key, for messages.

    Raises:
        Corrupt: it is not that header, or exceeds a limit.
    """
    prefix = _read(stream, PREFIX.size, f"{key}: the header's length")
    magic, length = PREFIX.unpack(prefix)
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
    """Raise Corrupt, which names the field, unless the update answers the expected order."""
    for field in fields(Origin):
        found, wanted = getattr(header, field.name), getattr(expected, field.name)
        if found != wanted:
            raise Corrupt(f"{key}: its {field.name} is {found!r}, expected {wanted!r}")


def verify_file(path: Path, *, header_sha256: str) -> None:
    """Raise unless the file of an update is whole: the header, every chunk, and no byte more.

    Raises:
        Corrupt: it is not what was written (a power cut, a damaged disk).
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        size = path.stat().st_size
        header = read_header(file, header_sha256=header_sha256, max_bytes=size, key=str(path))
        for index, chunk in enumerate(header.chunks):
            digest, left = hashlib.sha256(), chunk.size
            while left:
                part = file.read(min(left, _READ_BYTES))
                if not part:
                    raise Corrupt(f"{path}: cut off within chunk {index}")
                digest.update(part)
                left -= len(part)
            if digest.hexdigest() != chunk.sha256:
                raise Corrupt(f"{path}: chunk {index} is damaged")
        if file.read(1):
            raise Corrupt(f"{path}: bytes follow the last chunk")


def _no_duplicates(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _decode_header(text: bytes, key: str) -> UpdateHeader:
    try:
        # limits before validation: msgpack allocates what a length claims
        fields = msgpack.unpackb(
            text,
            raw=False,
            object_pairs_hook=_no_duplicates,
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


def _read(stream: Reader, size: int, what: str) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = stream.read(min(size - len(data), _READ_BYTES))
        if not part:
            raise Corrupt(f"{what} is cut off after {len(data)} of {size} bytes")
        data += part
    return bytes(data)
