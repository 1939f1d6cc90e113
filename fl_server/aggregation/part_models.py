"""Models of a part of a version, for devices that train no more than that.

A part is a function of the version and of its slices: it is written again, byte for byte, wherever
it is not known any more.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from algorithms.base import BLOCK
from fl_server.aggregation.base_models import BaseModels
from fl_server.rounds.model import Model
from storage.store.objects import Objects
from storage.versions.keys import RunKeys
from storage.weights import Slices, encode_header, read_layout

_COPY_BYTES = 1 << 20


class PartModels:
    """The parts of the version that a run goes on from. Thread-safe."""

    def __init__(self, keys: RunKeys, base: BaseModels, store: Objects) -> None:
        self._keys, self._base, self._store = keys, base, store
        self._lock = threading.Lock()
        self._known: dict[str, Model] = {}
        self._version = ""

    def describe(self, base: Model, slices: Slices) -> Model:
        """Return what a part is, without storing it; raises as ``BaseModels.fetch`` does."""
        with self._lock:
            return self._known_of(base).get(slices.digest) or self._written(base, slices, None)

    def store(self, base: Model, slices: Slices) -> Model:
        """Return a part once it is in the store; raises as ``BaseModels.fetch`` does."""
        path = self._base.copies.temporary()
        try:
            with self._lock, path.open("wb") as out:
                model = self._written(base, slices, out)
            with path.open("rb") as file:
                self._store.put(model.key, file, model.size_bytes)
        finally:
            path.unlink(missing_ok=True)
        return model

    def _written(self, base: Model, slices: Slices, out: BinaryIO | None) -> Model:
        digest, size = hashlib.sha256(), 0
        for data in _contents(self._base.fetch(base), slices):
            digest.update(data)
            size += memoryview(data).nbytes
            if out is not None:
                out.write(data)
        key = self._keys.part(base.version, slices.digest)
        model = Model(base.version, key, digest.hexdigest(), size)
        self._known_of(base)[slices.digest] = model
        return model

    def _known_of(self, base: Model) -> dict[str, Model]:
        if self._version != base.sha256:
            self._version, self._known = base.sha256, {}
        return self._known


def _contents(whole: Path, slices: Slices) -> Iterator[bytes | memoryview]:
    """Yield a part's file in the stored form, a block at a time."""
    with whole.open("rb") as file:
        layout, offset = read_layout(file)
        yield encode_header(slices.part)
        # its pages are the kernel's, which reads those alone that are asked for
        vector = np.memmap(file, "<f4", "r", offset, (layout.size,))
        for start in range(0, slices.part.size, BLOCK):
            count = min(BLOCK, slices.part.size - start)
            yield np.ascontiguousarray(vector[slices.places(start, count)], "<f4").data
        file.seek(offset + 4 * layout.size)
        while tail := file.read(_COPY_BYTES):
            yield tail
