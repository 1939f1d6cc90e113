"""Where verified updates wait and where sums live: memory up to a bound, else unlinked files.

An unlinked file is gone with the process, however it ends, so nothing is left behind.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from algorithms.base import BLOCK
from fl_server.aggregation.arithmetic.exact import BlockSum, Float32s, Int64s
from runtime.errors import Corrupt
from storage.updates.info import Section


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
            self._file = unlinked_file(folder)

    def append(self, values: Float32s) -> None:
        """Keep a copy of the next values."""
        if self._file is not None:
            write_all(self._file, values)
        elif self._array is not None:
            self._array[self._filled : self._filled + len(values)] = values
        self._filled += len(values)

    @property
    def is_in_memory(self) -> bool:
        """Whether the values are in memory and not in a file."""
        return self._array is not None

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
        read_into(self._file, values)
        return values

    def parts(self, sections: Sequence[Section]) -> dict[str, SpoolPart]:
        """Return the sections by name; when all are closed, so is the spool."""
        found: dict[str, SpoolPart] = {}
        start, open_parts = 0, set[int]()
        for section in sections:
            found[section.name] = SpoolPart(self, start, section.count, open_parts)
            start += section.count
        return found

    def close(self) -> None:
        """Give the memory or the disk back."""
        self._array = None
        self._buffer = None
        if self._file is not None:
            self._file.close()
            self._file = None
        self._budget.give(self._reserved)
        self._reserved = 0


class Values(Protocol):
    """The values of one vector of an update, block by block."""

    size: int

    def read(self, start: int, count: int) -> Float32s:
        """Return at most ``BLOCK`` values from ``start`` on; they hold until the next read."""
        ...

    def close(self) -> None:
        """Give back what they take."""
        ...


def blocks_of(values: Values) -> Iterator[tuple[int, Float32s]]:
    """Yield (start, values) of ``BLOCK`` values; they hold until the next are asked for."""
    for start in range(0, values.size, BLOCK):
        yield start, values.read(start, min(BLOCK, values.size - start))


class SpoolPart:
    """One section's values of a spool, which is closed with the last of its parts."""

    def __init__(self, spool: Spool, start: int, size: int, open_parts: set[int]) -> None:
        self.size = size
        self._spool, self._start, self._open_parts = spool, start, open_parts
        open_parts.add(start)

    @property
    def is_in_memory(self) -> bool:
        """See :class:`Spool`."""
        return self._spool.is_in_memory

    def read(self, start: int, count: int) -> Float32s:
        """See :class:`Spool`."""
        return self._spool.read(self._start + start, count)

    def close(self) -> None:
        """Close the spool if no other part is open."""
        self._open_parts.discard(self._start)
        if not self._open_parts:
            self._spool.close()


class BlockSums:
    """A vector's exact sum, block by block: in memory up to a bound, beyond it in a file.

    The file is unlinked and its pages are the kernel's, not this process's memory.

    Args:
        size: the vector's values.
        updates: how many are expected (see ``BlockSum``).
        limbs_in_memory: a block with more of them goes to the file.
    """

    def __init__(self, size: int, updates: int, limbs_in_memory: int, folder: Path) -> None:
        # one array: its pages are large, and come when they are written to
        spare: Int64s = np.zeros((limbs_in_memory, size), np.int64)
        self._blocks = [
            BlockSum(min(BLOCK, size - start), updates, spare[:, start : start + BLOCK])
            for start in range(0, size, BLOCK)
        ]
        self._limbs_in_memory = limbs_in_memory
        self._offsets: dict[int, list[int]] = {}
        self._folder = folder
        self._file: BinaryIO | None = None
        self._end = 0

    def __len__(self) -> int:
        return len(self._blocks)

    def read(self, index: int) -> BlockSum:
        """Return a block's sum; what is added to it counts when it has been written back."""
        block = self._blocks[index]
        if self._file is None or index not in self._offsets:
            return block.with_limbs(block.limbs)
        limbs = [np.empty(block.count, np.int64) for _ in self._offsets[index]]
        for limb, offset in zip(limbs, self._offsets[index], strict=True):
            self._file.seek(offset)
            read_into(self._file, limb)
        return block.with_limbs(limbs)

    def write(self, index: int, block: BlockSum) -> None:
        """Keep a block's sum."""
        if index in self._offsets or len(block.limbs) > self._limbs_in_memory:
            self._write_to_file(self._offsets.setdefault(index, []), block.limbs)
            block = block.with_limbs([])
        self._blocks[index] = block

    def _write_to_file(self, offsets: list[int], limbs: list[Int64s]) -> None:
        self._file = self._file or unlinked_file(self._folder)
        for place, limb in enumerate(limbs):
            if place == len(offsets):
                offsets.append(self._end)
                self._end += limb.nbytes
            self._file.seek(offsets[place])
            write_all(self._file, limb)

    def close(self) -> None:
        """Give memory and disk back."""
        self._blocks = []
        if self._file is not None:
            self._file.close()
            self._file = None


def unlinked_file(folder: Path) -> BinaryIO:
    """Return a new file in the folder that ends with the process."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    file: BinaryIO = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 (close())
    return file


def write_all(file: BinaryIO, values: Float32s | Int64s) -> None:
    """Write all of the values at the file's position."""
    view = values.view(np.uint8).data
    while view:
        view = view[file.write(view) :]


def read_into(file: BinaryIO, values: Float32s | Int64s) -> None:
    """Fill the values from the file's position on; Corrupt when it ends before."""
    view = values.view(np.uint8).data
    done = 0
    while done < len(view):
        count = file.readinto(view[done:])  # type: ignore[attr-defined]
        if not count:
            raise Corrupt("a spool file ends early; is the disk full?")
        done += count
