"""The vectors of single updates until a round's end: in memory up to a bound, else in a file.

All that lies on the disk is in one file, so that a round of many updates takes one descriptor.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fl_server.aggregation.arithmetic.exact import Float32s
from fl_server.aggregation.arithmetic.single_updates import SingleUpdates
from fl_server.aggregation.spool import SpoolPart, blocks_of, read_into, unlinked_file, write_all


class KeptUpdates(SingleUpdates):
    """One vector of each update.

    Args:
        size: the vector's values.
        folder: where that lies which memory should not hold.
    """

    def __init__(self, size: int, folder: Path) -> None:
        self.size = size
        self._folder = folder
        self._file: BinaryIO | None = None
        self._end = 0
        self._in_memory: dict[str, SpoolPart] = {}
        self._offsets: dict[str, int] = {}

    @property
    def devices(self) -> list[str]:
        """See :class:`SingleUpdates`."""
        return sorted((*self._in_memory, *self._offsets))

    def add(self, device_id: str, part: SpoolPart) -> None:
        """Take an update's vector; the part is this object's to close."""
        if part.is_in_memory:
            self._in_memory[device_id] = part
            return
        self._file = self._file or unlinked_file(self._folder)
        with closing(part):
            self._file.seek(self._end)
            for _, values in blocks_of(part):
                write_all(self._file, values)
        self._offsets[device_id] = self._end
        self._end += 4 * self.size

    def read(self, start: int, count: int) -> Float32s:
        """See :class:`SingleUpdates`."""
        devices = self.devices
        found: Float32s = np.empty((len(devices), count), np.float32)
        for row, device_id in zip(found, devices, strict=True):
            if device_id in self._in_memory:
                row[:] = self._in_memory[device_id].read(start, count)
            else:
                assert self._file is not None
                self._file.seek(self._offsets[device_id] + 4 * start)
                read_into(self._file, row)
        return found

    def close(self) -> None:
        """Give memory and disk back."""
        for part in self._in_memory.values():
            part.close()
        self._in_memory, self._offsets = {}, {}
        if self._file is not None:
            self._file.close()
            self._file = None
