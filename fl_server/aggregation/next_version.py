"""The next version of a model, made block by block of the one before and of a round's sums."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from algorithms.base import BLOCK, Algorithm, Scalars
from fl_server.aggregation.arithmetic.changes import Changes
from fl_server.aggregation.arithmetic.server_half import Block, ServerHalf, VersionInput
from fl_server.aggregation.vectors import VectorsReader, VectorsWriter, read_floats
from storage.store.multipart_writer import PartWriter
from storage.transfer.byte_ranges import Range
from storage.weights import Layout, encode_header, read_layout

_COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class RoundInput:
    """What a version is made of.

    Attributes:
        base: the file of the version before.
        vectors: that of the server's vectors, None before the first round or without any.
        figures: the rest.
    """

    base: Path
    vectors: Path | None
    figures: VersionInput


@dataclass(frozen=True)
class WrittenVersion:
    """What was written: the model's hash, its changed bytes, and what the server keeps."""

    sha256: str
    changed: tuple[Range, ...] | None
    scalars: Scalars
    has_vectors: bool


class NextVersion:
    """Makes one version.

    Raises:
        Corrupt: a file is damaged, or the weights of all updates are 0.
    """

    def __init__(self, algorithm: Algorithm, given: RoundInput) -> None:
        self._given = given
        self._half = ServerHalf(algorithm, given.figures)
        self._vectors: VectorsReader | None = None

    def write(self, model: Path, vectors: Path, parts: PartWriter | None) -> WrittenVersion:
        """Write the version to ``model``, and what the server keeps to ``vectors``.

        Args:
            parts: sends a large version to the store while it is written.

        Raises:
            NotFinite: a value of it would not be finite.
        """
        given = self._given
        with given.base.open("rb") as old:
            layout, offset = read_layout(old)
            if given.vectors is None:
                return self._write(old, layout, offset, model, vectors, parts)
            self._vectors = VectorsReader(given.vectors, layout.size)
            with closing(self._vectors):
                return self._write(old, layout, offset, model, vectors, parts)

    def _write(
        self,
        old: BinaryIO,
        layout: Layout,
        offset: int,
        model: Path,
        vectors: Path,
        parts: PartWriter | None,
    ) -> WrittenVersion:
        def blocks() -> Iterator[Block]:
            old.seek(offset)
            return self._blocks(old, layout.size)

        scalars = self._half.advance(blocks)
        old.seek(0)
        before = old.read(offset)
        header = encode_header(layout)
        changes = Changes(before, header, 4 * layout.size)
        with model.open("wb") as new, VectorsWriter(vectors, layout.size) as kept:
            out = _HashedFile(new, parts)
            out.write(header)
            for block in self._blocks(old, layout.size):
                values, after = self._half.next_block(block, scalars, layout)
                changes.compare(block[1], values)
                out.write(values.data)
                kept.write(block[0], after)
            while tail := old.read(_COPY_BYTES):
                out.write(tail)
            size = new.tell()
        return WrittenVersion(
            out.digest.hexdigest(), changes.found(size), scalars, bool(kept.names)
        )

    def _blocks(self, old: BinaryIO, size: int) -> Iterator[Block]:
        for start in range(0, size, BLOCK):
            count = min(BLOCK, size - start)
            weights = read_floats(old, count)
            if self._vectors is None:
                yield start, weights, self._half.init(weights, start)
            else:
                yield start, weights, self._vectors.blocks(start, count)


class _HashedFile:
    """A file that is hashed and sent as it is written, while each block is in the cache."""

    def __init__(self, file: BinaryIO, parts: PartWriter | None) -> None:
        self._file = file
        self._parts = parts
        self.digest = hashlib.sha256()

    def write(self, data: bytes | memoryview) -> None:
        self.digest.update(data)
        self._file.write(data)
        if self._parts is not None:
            self._parts.write(data)
