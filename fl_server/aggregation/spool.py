"""Where verified updates wait and where sums live: memory up to a bound, else unlinked files.

An unlinked file is gone with the process, however it ends, so nothing is left behind.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fl_server.aggregation.arithmetic.exact import BLOCK, Float32s, Int64s
from runtime.errors import Corrupt


class MemoryBudget:
    """A bound on the bytes that all spools together hold in memory. Thread-safe."""

    def __init__(self, limit_bytes: int) -> None:
        self._left = limit_bytes
        self._lock = threading.Lock()

    def take(self, size: int) -> bool:
        """Reserve ``size`` bytes; False when they are not there."""
        with self._lock:
            if size > self._left:
                return False
            self._left -= size
            return True

    def give(self, size: int) -> None:
        """Return a reservation."""
        with self._lock:
            self._left += size


class Spool:
    """One update's float32 values between verification and addition."""

    def __init__(self, size: int, budget: MemoryBudget, folder: Path) -> None:
        self.size = size
        self._budget = budget
        self._reserved = 4 * size if budget.take(4 * size) else 0
        self._filled = 0
        self._array: Float32s | None = None
        self._file: BinaryIO | None = None
        self._buffer: Float32s | None = None
        if self._reserved:
            self._array = np.empty(size, np.float32)
        else:
            self._file = _unlinked_file(folder)

    def append(self, values: Float32s) -> None:
        """Keep a copy of the next values."""
        if self._file is not None:
            _write_all(self._file, values)
        elif self._array is not None:
            self._array[self._filled : self._filled + len(values)] = values
        self._filled += len(values)

    def read(self, start: int, count: int) -> Float32s:
        """Return at most ``BLOCK`` values from ``start`` on; they hold until the next read."""
        if self._array is not None:
            return self._array[start : start + count]
        if self._file is None:
            raise Corrupt("a spool was read after it was closed")
        if self._buffer is None:
            self._buffer = np.empty(min(BLOCK, self.size), np.float32)
        values = self._buffer[:count]
        self._file.seek(4 * start)
        _read_into(self._file, values)
        return values

    def blocks(self) -> Iterator[tuple[int, Float32s]]:
        """Yield (start, values); a block holds until the next is asked for."""
        if self._array is not None:
            yield 0, self._array
            return
        for start in range(0, self.size, BLOCK):
            yield start, self.read(start, min(BLOCK, self.size - start))

    def close(self) -> None:
        """Give the memory or the disk back."""
        self._array = None
        self._buffer = None
        if self._file is not None:
            self._file.close()
            self._file = None
        self._budget.give(self._reserved)
        self._reserved = 0


class FileSums:
    """Sums in an unlinked file: their pages are the kernel's, not this process's memory."""

    def __init__(self, size: int, folder: Path) -> None:
        self._file = _unlinked_file(folder)
        self._file.truncate(8 * size)
        self._block: Int64s = np.empty(min(BLOCK, size), np.int64)

    def read(self, start: int, count: int) -> Int64s:
        """Return a block in a buffer that the next read uses again."""
        values = self._block[:count]
        self._file.seek(8 * start)
        _read_into(self._file, values)
        return values

    def write(self, start: int, sums: Int64s) -> None:
        """Write a block back."""
        self._file.seek(8 * start)
        _write_all(self._file, sums)

    def close(self) -> None:
        """Give the disk back."""
        self._file.close()


def _unlinked_file(folder: Path) -> BinaryIO:
    folder.mkdir(parents=True, exist_ok=True)
    file: BinaryIO = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 (close())
    return file


def _write_all(file: BinaryIO, values: Float32s | Int64s) -> None:
    view = values.view(np.uint8).data
    while view:
        view = view[file.write(view) :]


def _read_into(file: BinaryIO, values: Float32s | Int64s) -> None:
    view = values.view(np.uint8).data
    done = 0
    while done < len(view):
        count = file.readinto(view[done:])  # type: ignore[attr-defined]
        if not count:
            raise Corrupt("a spool file ends early; is the disk full?")
        done += count
