"""sparse: the parameters that are not zero, each after how many zeros stand before it.

A block of which most are not zero is written as it is, as ``float32`` does.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from runtime.errors import Corrupt
from storage.codecs.base import Buffer, Codec
from storage.weights import Vector

_HEADER = struct.Struct("<BI")
_DENSE, _SPARSE = 0, 1
_PAIR_BYTES = 6
_FAR = 0xFFFF
"""The most zeros between two values that are written; where there are more, one is written too."""


@dataclass(frozen=True)
class Sparse(Codec):
    """Six bytes for a parameter that is not zero; nothing is lost."""

    lossless: ClassVar[bool] = True

    def max_bytes(self, count: int) -> int:
        """Return the size of a block without zeros."""
        return _HEADER.size + 4 * count

    def error_bound(self, block: Vector) -> float:
        """Return 0: nothing is lost."""
        return 0.0

    def encode(self, block: Vector) -> Buffer:
        """Return the gaps and then the values, or all values where that is shorter."""
        # by their bits: a negative zero is written
        places = np.flatnonzero(block.view(np.uint32))
        if _PAIR_BYTES * len(places) < 4 * block.size:
            places = _with_steps(places)
        if _PAIR_BYTES * len(places) >= 4 * block.size:
            return _HEADER.pack(_DENSE, block.size) + block.astype("<f4", copy=False).tobytes()
        gaps = np.diff(places, prepend=-1) - 1
        values = block[places].astype("<f4", copy=False)
        header = _HEADER.pack(_SPARSE, len(places))
        return header + gaps.astype("<u2").tobytes() + values.tobytes()

    def decode(self, data: Buffer, count: int) -> Vector:
        """Return the parameters."""
        view = memoryview(data).cast("B")
        if view.nbytes < _HEADER.size:
            raise Corrupt(f"sparse: {view.nbytes} bytes, at least {_HEADER.size}")
        kind, written = _HEADER.unpack(view[: _HEADER.size])
        body = view[_HEADER.size :]
        if kind == _DENSE and written == count and body.nbytes == 4 * count:
            return np.frombuffer(body, "<f4")
        if kind != _SPARSE or written > count or body.nbytes != _PAIR_BYTES * written:
            raise Corrupt(f"sparse: {view.nbytes} bytes are no {count} parameters")
        gaps = np.frombuffer(body[: 2 * written], "<u2").astype(np.int64)
        places = np.cumsum(gaps + 1) - 1
        if written and places[-1] >= count:
            raise Corrupt(f"sparse: a value at {places[-1]} of {count} parameters")
        found = np.zeros(count, np.float32)
        found[places] = np.frombuffer(body[2 * written :], "<f4")
        return found


def _with_steps(
    places: np.ndarray[tuple[int], np.dtype[np.intp]],
) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    """Return the places with zeros between those that are too far apart for one gap."""
    gaps = np.diff(places, prepend=-1) - 1
    far = np.flatnonzero(gaps > _FAR)
    steps = [
        np.arange(places[index] - gaps[index] + _FAR, places[index], _FAR + 1) for index in far
    ]
    return np.sort(np.concatenate([places, *steps])) if steps else places
