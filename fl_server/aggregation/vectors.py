"""The server's vectors of an algorithm in a file, block by block: it never holds one whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from algorithms.base import Flat
from fl_server.aggregation.arithmetic.exact import Float32s
from fl_server.aggregation.arithmetic.server_half import kept_vectors
from runtime.errors import Corrupt
from storage.weights import Layout, TensorSpec, encode_header, read_layout


class VectorsReader:
    """Reads vectors of one length from a file in the stored form of weights.

    Raises:
        Corrupt: the file is no such file.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._file = path.open("rb")
        try:
            layout, self._data = read_layout(self._file)
        except BaseException:
            self._file.close()
            raise
        if any(spec.shape != (size,) for spec in layout.tensors) or layout.others:
            self._file.close()
            raise Corrupt(f"{path}: its vectors are not of {size} values")
        self._starts = {name: where.start for name, where in layout.offsets.items()}

    def blocks(self, start: int, count: int) -> dict[str, Float32s]:
        """Return a block of every vector."""
        found = {}
        for name, first in self._starts.items():
            self._file.seek(self._data + 4 * (first + start))
            found[name] = read_floats(self._file, count)
        return found

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class VectorsWriter:
    """Writes vectors of one length to a file in the stored form of weights, block by block.

    The first block tells their names; without any no file is made. It is a context manager that
    closes the file.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._path, self._size = path, size
        self._file: BinaryIO | None = None
        self._data = 0
        self.names: tuple[str, ...] = ()

    def __enter__(self) -> VectorsWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, start: int, blocks: Mapping[str, Flat]) -> None:
        """Write a block of every vector.

        Raises:
            NotFinite: a value is not finite; the text names the vector.
        """
        if start == 0:
            self._open(tuple(blocks))
        kept = kept_vectors({name: blocks[name] for name in self.names})
        for index, values in enumerate(kept.values()):
            assert self._file is not None
            self._file.seek(self._data + 4 * (index * self._size + start))
            self._file.write(values.data)

    def _open(self, names: tuple[str, ...]) -> None:
        self.names = names
        if not names:
            return
        header = encode_header(Layout(tuple(TensorSpec(name, (self._size,)) for name in names)))
        self._file, self._data = self._path.open("wb"), len(header)
        self._file.write(header)


def read_floats(file: BinaryIO, count: int) -> Float32s:
    """Return the next values of a file; Corrupt when it ends before."""
    values: Float32s = np.empty(count, np.float32)
    if file.readinto(values.data) != 4 * count:  # type: ignore[attr-defined]
        raise Corrupt(f"{getattr(file, 'name', 'a file')} ends early")
    return values
