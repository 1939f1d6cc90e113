"""What the sender of an update writes into its header; ``storage.updates.header`` reads it.

Without numpy and pydantic, for which the training process has no memory to spare. The reader of an
update trusts nothing of it and checks everything.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

import msgpack

from runtime.bounds import MAX_EXAMPLES, MAX_FINITE, MAX_METRIC_NAME, MAX_METRICS
from runtime.errors import ConfigError
from runtime.records import Bounds, require_checked

MAGIC = b"RGU1"
PREFIX = struct.Struct(">4sI")
MAX_HEADER_BYTES = 1 << 20
MAX_CHUNKS = 8192
MAX_CHUNK_PARAMS = 1 << 22
MAX_SECTIONS = 64
MAX_SECTION_NAME = 64
MAX_REPORTS = 8192
"""Of the devices whose updates are in one sum: an array of msgpack that is read has no more."""
SUM_BLOCK = 1 << 18
"""How many values of a sum share one unit, the block in which servers sum."""
MAX_SUM_BYTES = 48
"""Of one value of a sum: no weights allow more."""
SCHEMA_VERSION = 1
NOTHING_SHA256 = hashlib.sha256().hexdigest()


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Which order an update answers: of which round, on which model, to which device."""

    run_id: str
    round: int
    attempt: int
    device_id: str
    base_sha256: str
    layout_hash: str
    kind: Literal["delta", "weights", "sums", "updates"]


@dataclass(frozen=True)
class Section:
    """A named part of an update: a vector, or a scalar of one value."""

    name: Annotated[str, Bounds(length=MAX_SECTION_NAME)]
    count: Annotated[int, Bounds(least=1)]

    def __post_init__(self) -> None:
        require_checked(self)


@dataclass(frozen=True, kw_only=True)
class UpdateInfo(Origin):
    """What a device states about its update.

    Attributes:
        sections: what the values are, in order; none where they are the update of the weights.

    Raises:
        FieldError: a field is out of its bounds.
    """

    num_examples: Annotated[int, Bounds(least=1, most=MAX_EXAMPLES)]
    metrics: Annotated[
        dict[
            Annotated[str, Bounds(length=MAX_METRIC_NAME)],
            Annotated[float, Bounds(least=-MAX_FINITE, most=MAX_FINITE)],
        ],
        Bounds(length=MAX_METRICS),
    ] = field(default_factory=dict)
    sections: tuple[Section, ...] = ()

    def __post_init__(self) -> None:
        require_checked(self)


@dataclass(frozen=True)
class Block:
    """One chunk: its size in bytes, its parameters and the hash of its bytes."""

    size: int
    count: int
    sha256: str


def encode_header(info: UpdateInfo, codec: str, chunks: Sequence[Block]) -> bytes:
    """Return everything before the chunks; ConfigError when it is too long."""
    fields: dict[str, Any] = {
        **asdict(info),
        "schema_version": SCHEMA_VERSION,
        "codec": codec,
        "chunks": [asdict(chunk) for chunk in chunks],
    }
    if not info.sections:
        # servers of before know no such field
        del fields["sections"]
    text: bytes = msgpack.packb(fields, use_bin_type=True)
    if len(text) > MAX_HEADER_BYTES:
        raise ConfigError(f"an update's header of {len(text)} bytes, at most {MAX_HEADER_BYTES}")
    return PREFIX.pack(MAGIC, len(text)) + text
