"""The next version of a model, made block by block of the one before and of a round's sums."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from algorithms.base import BLOCK, STATISTICS, Algorithm, Blocks, Mean, Report, Scalars
from fl_server.aggregation.arithmetic.changes import Changes
from fl_server.aggregation.arithmetic.exact import Float32s
from fl_server.aggregation.sums import RoundSums
from fl_server.aggregation.vectors import VectorsReader, VectorsWriter, read_floats
from runtime.bounds import MAX_SCALARS, is_plausible
from runtime.errors import Corrupt
from storage.store.multipart_writer import PartWriter
from storage.transfer.byte_ranges import Range
from storage.weights import Layout, NotFinite, encode_header, next_values, read_layout

_COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class RoundInput:
    """What a version is made of.

    Attributes:
        base: the file of the version before.
        vectors: that of the server's vectors, None before the first round or without any.
        scalars: the server's scalars until now.
        sums: of what the clients sent.
        reports: of the updates in the sums, by device.
        population: how many clients the run knows.
        seed: the run's.
    """

    base: Path
    vectors: Path | None
    scalars: Scalars
    sums: RoundSums
    reports: Sequence[Report]
    population: int
    seed: int


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
        self._algorithm, self._given = algorithm, given
        self._mean = Mean({}, self._scalars(), len(given.reports), given.population)
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
        scalars = self._advanced(old, layout, offset)
        old.seek(0)
        before = old.read(offset)
        header = encode_header(layout)
        changes = Changes(before, header, 4 * layout.size)
        with model.open("wb") as new, VectorsWriter(vectors, layout.size) as kept:
            out = _HashedFile(new, parts)
            out.write(header)
            for start, weights, state in self._blocks(old, layout.size):
                # what overflows is found by next_values
                with np.errstate(all="ignore"):
                    mean = self._mean_at(start, len(weights))
                    result, after = self._algorithm.aggregate(weights, mean, state, scalars)
                    if STATISTICS in self._given.sums:
                        result = result + self._given.sums.mean(STATISTICS, start, len(weights))
                    values = np.ascontiguousarray(result, np.float32)
                values = next_values(weights, values, layout, start)
                changes.compare(weights, values)
                out.write(values.data)
                kept.write(start, after)
            while tail := old.read(_COPY_BYTES):
                out.write(tail)
            size = new.tell()
        return WrittenVersion(
            out.digest.hexdigest(), changes.found(size), scalars, bool(kept.names)
        )

    def _blocks(self, old: BinaryIO, size: int) -> Iterator[tuple[int, Float32s, Blocks]]:
        """Yield where each block begins, its weights, and the server's vectors there."""
        for start in range(0, size, BLOCK):
            count = min(BLOCK, size - start)
            weights = read_floats(old, count)
            if self._vectors is None:
                yield start, weights, self._algorithm.init(weights, start, self._given.seed)
            else:
                yield start, weights, self._vectors.blocks(start, count)

    def _mean_at(self, start: int, count: int) -> Mean:
        sums, names = self._given.sums, self._algorithm.sends
        vectors = {name: sums.mean(name, start, count) for name in names}
        if not self._algorithm.narrow_widths:
            return replace(self._mean, vectors=vectors)
        coverage = {name: sums.coverage(name, start, count) for name in names}
        return replace(self._mean, vectors=vectors, coverage=coverage)

    def _scalars(self) -> dict[str, float]:
        sums = self._given.sums
        return {
            name: float(sums.mean(name, 0, 1)[0])
            for name in self._algorithm.reports
            if name in sums
        }

    def _advanced(self, old: BinaryIO, layout: Layout, offset: int) -> Scalars:
        """Return the server's next scalars."""
        measured = self._measured(old, layout, offset)
        with np.errstate(all="ignore"):
            scalars = self._algorithm.advance(
                self._mean, self._given.reports, self._given.scalars, measured
            )
        if len(scalars) > MAX_SCALARS:
            raise Corrupt(f"the algorithm keeps {len(scalars)} scalars, at most {MAX_SCALARS}")
        for name, value in scalars.items():
            if not is_plausible(value):
                raise NotFinite(f"the algorithm's {name!r} would be {value}")
        return scalars

    def _measured(self, old: BinaryIO, layout: Layout, offset: int) -> Mapping[str, float]:
        algorithm = self._algorithm
        found: dict[str, float] = {}
        if type(algorithm).measure is Algorithm.measure:
            return found
        old.seek(offset)
        for start, weights, state in self._blocks(old, layout.size):
            with np.errstate(all="ignore"):
                part = algorithm.measure(weights, self._mean_at(start, len(weights)), state)
            for name, value in part.items():
                found[name] = found.get(name, 0.0) + float(value)
        return found


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
