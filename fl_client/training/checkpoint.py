"""The checkpoint of a round's training, from which it resumes after a power cut.

    magic, length of the header, header (JSON), the arrays end to end, sha256 of all before

Writes wear flash cards, so it is written seldom: the pause between two grows with the training, and
a round has a budget of bytes that a restart does not renew. It belongs to one order: a training
never resumes from that of another run, round, attempt, model or setting. A damaged one is not used.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import os
import struct
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import Corrupt
from runtime.records import Bounds, build

_LOG = logging.getLogger(__name__)
_MAGIC = b"rengo-checkpoint-1\n"
_LENGTH = struct.Struct("<Q")
_DIGEST_BYTES = 32
_MAX_HEADER_BYTES = 16 << 20
_KINDS = "biufc"
_Count = Annotated[int, Bounds(least=0)]


@dataclass(frozen=True)
class Pace:
    """How often a training may write.

    Attributes:
        every_s: the shortest pause between two checkpoints, and before the first.
        most_bytes: what one round may write in all; 0 writes nothing.
    """

    every_s: float = 60.0
    most_bytes: int = 256 << 20

    def pause_s(self, trained_s: float, written_bytes: int, size_bytes: int) -> float:
        """Return how long to train before the next one; infinity when the budget is spent.

        The writes that are left are spread: with ``n`` of them at most ``1/n`` of the training so
        far is at stake, so that a training of any length keeps some.
        """
        left = (self.most_bytes - written_bytes) // max(1, size_bytes)
        return max(self.every_s, trained_s / left) if left > 0 else math.inf


@dataclass(frozen=True)
class _CheckpointHeader:
    binding: str
    trained_s: Annotated[float, Bounds(least=0)]
    written_bytes: _Count
    arrays: list[tuple[str, str, list[_Count]]]


class FileCheckpoint:
    """A round's checkpoint in a file; the thread that trains calls it.

    Args:
        path: the file; ``<name>.part`` beside it is written first.
        order: what the training is a function of, apart from the data, as JSON can say it.
        pace: how often it may write.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        path: Path,
        order: object,
        pace: Pace,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = path
        self._part = path.with_name(f"{path.name}.part")
        text = json.dumps(order, sort_keys=True)
        self._binding = hashlib.sha256(text.encode()).hexdigest()
        self._pace = pace
        self._clock = clock
        self._began_s = clock()
        self._written_bytes = 0
        self._due_s = self._began_s + pace.pause_s(0.0, 0, 1)

    def load(self) -> dict[str, NDArray[Any]] | None:
        """Return what was saved last for this order; a file of no use is removed."""
        try:
            with self.path.open("rb") as file:
                header, arrays = _read(file, self._binding)
        except FileNotFoundError:
            return None
        except (Corrupt, OSError) as error:
            _LOG.warning("training begins anew: checkpoint %s: %s", self.path, error)
            self.discard()
            return None
        self._began_s = self._clock() - header.trained_s
        self._written_bytes = header.written_bytes
        self._plan_next(self.path.stat().st_size)
        _LOG.warning("training goes on from a checkpoint, after %.0f s of it", header.trained_s)
        return arrays

    def due(self) -> bool:
        """Return whether to save now."""
        return self._clock() >= self._due_s

    def save(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Replace what was saved; on a full disk the checkpoint is lost and the training goes on.

        Raises:
            TypeError: an array is not of numbers.
        """
        size = sum(array.nbytes for array in arrays.values())
        if self._written_bytes + size <= self._pace.most_bytes:
            try:
                size = self._write(arrays)
            except OSError as error:
                _LOG.warning("no checkpoint %s: %s", self.path, error)
                self._part.unlink(missing_ok=True)
        self._plan_next(size)

    def discard(self) -> None:
        """Remove the file; nothing happens when there is none."""
        self._part.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    def _plan_next(self, size: int) -> None:
        now_s = self._clock()
        trained_s = now_s - self._began_s
        self._due_s = now_s + self._pace.pause_s(trained_s, self._written_bytes, size)

    def _write(self, arrays: dict[str, NDArray[Any]]) -> int:
        size = sum(array.nbytes for array in arrays.values())
        header = _CheckpointHeader(
            binding=self._binding,
            trained_s=self._clock() - self._began_s,
            written_bytes=self._written_bytes + size,
            arrays=[
                (name, _type_of(name, each), list(each.shape)) for name, each in arrays.items()
            ],
        )
        text = json.dumps(asdict(header)).encode()
        descriptor = os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as out:
            digest = hashlib.sha256()
            for block in _blocks([_MAGIC, _LENGTH.pack(len(text)), text], arrays):
                out.write(block)
                digest.update(block)
            out.write(digest.digest())
            out.flush()
            # before it replaces the last good one
            os.fdatasync(out.fileno())
            written = out.tell()
        self._part.replace(self.path)
        self._written_bytes += written
        return written


def _type_of(name: str, array: NDArray[Any]) -> str:
    if array.dtype.kind not in _KINDS:
        raise TypeError(f"checkpoint array {name!r} is of type {array.dtype}, not of numbers")
    return array.dtype.str


def _blocks(
    first: Iterable[bytes], arrays: dict[str, NDArray[Any]]
) -> Iterable[bytes | memoryview[int]]:
    yield from first
    for array in arrays.values():
        if array.size:
            yield np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _read(
    file: io.BufferedReader, binding: str
) -> tuple[_CheckpointHeader, dict[str, NDArray[Any]]]:
    """Return the header and the arrays; Corrupt when the file is damaged or of another order."""
    digest = hashlib.sha256()

    def read(size: int) -> bytes:
        data = file.read(size)
        if len(data) < size:
            raise Corrupt("it is cut short")
        digest.update(data)
        return data

    if read(len(_MAGIC)) != _MAGIC:
        raise Corrupt("it is no checkpoint")
    (length,) = _LENGTH.unpack(read(_LENGTH.size))
    if length > _MAX_HEADER_BYTES:
        raise Corrupt("it is damaged")
    try:
        header = build(_CheckpointHeader, _table(read(length)))
    except (ValueError, RecursionError) as error:
        raise Corrupt("its header is damaged") from error
    if header.binding != binding:
        raise Corrupt("it is of another order")
    arrays = {name: _empty(kind, shape, file) for name, kind, shape in header.arrays}
    for array in arrays.values():
        if array.size:
            view = array.reshape(-1).view(np.uint8).data
            if file.readinto(view) < len(view):
                raise Corrupt("it is cut short")
            digest.update(view)
    if file.read(_DIGEST_BYTES + 1) != digest.digest():
        raise Corrupt("its checksum is wrong")
    return header, arrays


def _table(text: bytes) -> dict[str, Any]:
    found = json.loads(text)
    if not isinstance(found, dict):
        raise Corrupt("its header is damaged")
    return found


def _empty(kind: str, shape: list[int], file: io.BufferedReader) -> NDArray[Any]:
    """Return an empty array, no larger than the file: the header may be damaged."""
    try:
        dtype = np.dtype(kind)
    except (TypeError, ValueError, SyntaxError) as error:
        # numpy parses the text, by Python's own parser in part
        raise Corrupt("its header is damaged") from error
    if (
        dtype.kind not in _KINDS
        or math.prod(shape) * dtype.itemsize > os.fstat(file.fileno()).st_size
    ):
        raise Corrupt("its header is damaged")
    return np.empty(shape, dtype)
