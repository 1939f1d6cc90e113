"""Updates that are exact sums of other updates: what a domain sends of its devices.

A sum's values are whole numbers times a power of two, so nothing is lost on the way, and a server
that adds sums up gets what it would get of the single updates, bit for bit. A block of
``SUM_BLOCK`` values is one chunk: so many bytes a value as its largest one needs, little-endian, in
two's complement, first the lowest byte of all values, then the next one. Equal sums have equal
bytes. A block of zeros is a chunk of no bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from runtime.errors import Corrupt
from storage.updates.forwarded import written
from storage.updates.header import ExactSums, ReportColumns, SumEntry, UpdateHeader
from storage.updates.info import (
    NOTHING_SHA256,
    SUM_BLOCK,
    Origin,
)
from storage.updates.stream import WrittenUpdate
from storage.weights import Reader

CODEC = "integers"
DIGIT_BITS = 40
_DIGIT_BYTES = DIGIT_BITS // 8
_COPY_BYTES = 1 << 20

Int64s = npt.NDArray[np.int64]
Planes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class WholeNumbers:
    """A block of a sum: value i is ``sum(digits[j][i] * 2**(unit + 40 j))``.

    All digits but the last lie within [0, 2**40), the last one within [-2**39, 2**39).
    """

    unit: int
    digits: Sequence[Int64s]


@dataclass(frozen=True)
class SumsInfo:
    """What a sender states about its sums, beside what order they answer.

    Attributes:
        weights: of each name's sum.
        reports: whose updates are in them.
    """

    num_examples: int
    metrics: dict[str, float]
    weights: dict[str, int]
    reports: ReportColumns
    population: int


def packed(numbers: WholeNumbers) -> tuple[int, Planes]:
    """Return the unit and the bytes of a block, one row for each byte of the values."""
    count = len(numbers.digits[0])
    planes = np.empty((_DIGIT_BYTES * len(numbers.digits), count), np.uint8)
    for place, digit in enumerate(numbers.digits):
        for each in range(_DIGIT_BYTES):
            planes[_DIGIT_BYTES * place + each] = (digit >> 8 * each) & 0xFF
    top, low = len(planes), 0
    while top > 1 and (planes[top - 1] == np.where(planes[top - 2] > 127, 255, 0)).all():
        top -= 1
    if top == 1 and not planes[0].any():
        return 0, planes[:0]
    while low < top - 1 and not planes[low].any():
        low += 1
    return numbers.unit + 8 * low, planes[low:top]


def unpacked(unit: int, data: memoryview, count: int) -> WholeNumbers:
    """Return what a block's bytes mean; there are bytes, as many for each value."""
    planes = np.frombuffer(data, np.uint8).reshape(-1, count)
    digits = []
    for start in range(0, len(planes), _DIGIT_BYTES):
        digit = np.zeros(count, np.int64)
        for each, plane in enumerate(planes[start : start + _DIGIT_BYTES]):
            digit |= plane.astype(np.int64) << 8 * each
        digits.append(digit)
    spare = 64 - 8 * (len(planes) - _DIGIT_BYTES * (len(digits) - 1))
    digits[-1] = (digits[-1] << spare) >> spare
    return WholeNumbers(unit, digits)


class SumsWriter:
    """Writes sums to a file: first their blocks, in order, to a file that is read again.

    Args:
        body: where the chunks lie until the header is known, which goes before them.
    """

    def __init__(self, body: BinaryIO) -> None:
        self._body = body
        self._counts: dict[str, int] = {}
        self._chunks: list[dict[str, Any]] = []
        self._units: list[int] = []

    def add(self, name: str, numbers: WholeNumbers) -> None:
        """Add the next block of a name's sum; names come one after the other."""
        unit, planes = packed(numbers)
        data = np.ascontiguousarray(planes).data
        digest = hashlib.sha256(data).hexdigest() if data.nbytes else NOTHING_SHA256
        count = len(numbers.digits[0])
        self._chunks.append({"size": data.nbytes, "count": count, "sha256": digest})
        self._units.append(unit)
        self._counts[name] = self._counts.get(name, 0) + count
        self._body.write(data)

    def finish(self, out: BinaryIO, origin: Origin, info: SumsInfo) -> WrittenUpdate:
        """Write the whole file.

        Raises:
            ConfigError: there are more reports than a header may hold.
        """
        sums = [
            SumEntry(name=name, count=count, weight=str(info.weights[name]))
            for name, count in self._counts.items()
        ]
        header = UpdateHeader.model_validate(
            {
                **asdict(origin),
                "num_examples": info.num_examples,
                "metrics": info.metrics,
                "codec": CODEC,
                "chunks": self._chunks,
                "sums": ExactSums(
                    sums=tuple(sums),
                    units=tuple(self._units),
                    reports=info.reports,
                    population=info.population,
                ),
            }
        )
        self._body.seek(0)
        return written(out, header, self._body)


def sum_chunks(
    stream: Reader, header: UpdateHeader, *, key: str = "update"
) -> Iterator[memoryview]:
    """Yield each chunk's bytes, verified; what is yielded holds until the next is asked for.

    Nothing of it may be used for good before the iterator has ended without an error.

    Raises:
        Corrupt: a chunk is not what the header says, or bytes follow the last.
    """
    buffer = memoryview(bytearray(max((chunk.size for chunk in header.chunks), default=0)))
    for index, chunk in enumerate(header.chunks):
        data, done = buffer[: chunk.size], 0
        while done < chunk.size:
            part = stream.read(min(chunk.size - done, _COPY_BYTES))
            if not part:
                raise Corrupt(f"{key}: chunk {index} is cut off after {done} of {chunk.size} bytes")
            data[done : done + len(part)] = part
            done += len(part)
        digest = hashlib.sha256(data).hexdigest()
        if digest != chunk.sha256:
            raise Corrupt(f"{key}: chunk {index} has sha256 {digest}, not {chunk.sha256}")
        yield data
    if stream.read(1):
        raise Corrupt(f"{key}: bytes follow the last chunk")


def require_readable(header: UpdateHeader, key: str) -> ExactSums:
    """Return the sums of a header; Corrupt where their numbers are written in another way."""
    if header.sums is None or header.codec != CODEC:
        raise Corrupt(f"{key}: sums are whole numbers, not {header.codec!r}")
    return header.sums


def block_count(count: int) -> int:
    """Return how many blocks a sum of so many values has."""
    return -(-count // SUM_BLOCK)
