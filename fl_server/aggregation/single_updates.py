"""One vector of each update of a round, for rules that a sum does not serve: read block by block.

All that lies on the disk is in one file, so that a round of many updates takes one descriptor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from algorithms.base import BLOCK
from fl_server.aggregation.arithmetic.exact import Float32s, Float64s
from fl_server.aggregation.spool import (
    SpoolPart,
    blocks_of,
    read_into,
    unlinked_file,
    write_all,
)

_VALUES = 1 << 22
"""How many values of all updates together are in memory at a time."""
GRAM_COLUMNS = 1 << 12
"""Dot products are added up in parts of so many coordinates, whatever a block is."""


@dataclass(frozen=True)
class _OnDisk:
    offset: int


class SingleUpdates:
    """The same vector of several updates, in the order of their devices' names.

    Args:
        size: the vector's values.
        folder: where that lies which memory should not hold.
    """

    def __init__(self, size: int, folder: Path) -> None:
        self.size = size
        self._folder = folder
        self._file: BinaryIO | None = None
        self._end = 0
        self._parts: dict[str, SpoolPart | _OnDisk] = {}

    @property
    def devices(self) -> list[str]:
        """Whose the updates are, in their order."""
        return sorted(self._parts)

    def add(self, device_id: str, part: SpoolPart) -> None:
        """Take an update's vector; the part is this object's to close."""
        if part.is_in_memory:
            self._parts[device_id] = part
            return
        self._file = self._file or unlinked_file(self._folder)
        with closing(part):
            self._file.seek(self._end)
            for _, values in blocks_of(part):
                write_all(self._file, values)
        self._parts[device_id] = _OnDisk(self._end)
        self._end += 4 * self.size

    def read(self, start: int, count: int) -> Float32s:
        """Return values from ``start`` on of all updates: [updates, count]."""
        found: Float32s = np.empty((len(self._parts), count), np.float32)
        for row, device_id in zip(found, self.devices, strict=True):
            part = self._parts[device_id]
            if isinstance(part, SpoolPart):
                row[:] = part.read(start, count)
            else:
                assert self._file is not None
                self._file.seek(part.offset + 4 * start)
                read_into(self._file, row)
        return found

    def gram(self, devices: Sequence[str]) -> Float64s:
        """Return the dot products of all pairs: [devices, devices]; zeros where one has no update.

        They are added up in parts of ``GRAM_COLUMNS``, whatever is read at a time.
        """
        own: Float64s = np.zeros((len(self._parts),) * 2)
        width = max(1, _VALUES // len(self._parts) // GRAM_COLUMNS) * GRAM_COLUMNS
        for start in range(0, self.size, min(BLOCK, width)):
            values = self.read(start, min(BLOCK, width, self.size - start)).astype(np.float64)
            for first in range(0, values.shape[1], GRAM_COLUMNS):
                piece = values[:, first : first + GRAM_COLUMNS]
                own += piece @ piece.T
        places = [devices.index(each) for each in self.devices]
        found: Float64s = np.zeros((len(devices),) * 2)
        found[np.ix_(places, places)] = own
        return found

    def combined(self, start: int, count: int, combine: Callable[[Float32s], Float64s]) -> Float64s:
        """Return what ``combine`` makes of each coordinate of a block."""
        found: Float64s = np.empty(count)
        width = max(1, _VALUES // len(self._parts))
        for first in range(0, count, width):
            part = slice(first, min(first + width, count))
            found[part] = combine(self.read(start + first, part.stop - first))
        return found

    def weighted(self, start: int, count: int, factors: Mapping[str, float]) -> Float64s:
        """Return a block of the sum of the updates, each times its device's factor.

        They are added in their order, so that the sum does not depend on that of their arrival.
        """
        total: Float64s = np.zeros(count)
        for device_id in self.devices:
            factor = factors[device_id]
            if factor:
                total += factor * self._read_one(device_id, start, count)
        return total

    def _read_one(self, device_id: str, start: int, count: int) -> Float64s:
        part = self._parts[device_id]
        if isinstance(part, SpoolPart):
            return part.read(start, count).astype(np.float64)
        assert self._file is not None
        values: Float32s = np.empty(count, np.float32)
        self._file.seek(part.offset + 4 * start)
        read_into(self._file, values)
        return values.astype(np.float64)

    def close(self) -> None:
        """Give memory and disk back."""
        for part in self._parts.values():
            if isinstance(part, SpoolPart):
                part.close()
        self._parts = {}
        if self._file is not None:
            self._file.close()
            self._file = None
