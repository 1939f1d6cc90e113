"""float32: the parameters as they are, little-endian."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from runtime.errors import Corrupt
from storage.codecs.base import Buffer, Codec
from storage.weights import Vector


@dataclass(frozen=True)
class Float32(Codec):
    """Four bytes a parameter, nothing lost and nothing copied."""

    lossless: ClassVar[bool] = True

    def max_bytes(self, count: int) -> int:
        """Return the exact size."""
        return 4 * count

    def error_bound(self, block: Vector) -> float:
        """Return 0: nothing is lost."""
        return 0.0

    def encode(self, block: Vector) -> Buffer:
        """Return a view of the block."""
        return block.astype("<f4", copy=False).view(np.uint8).data

    def decode(self, data: Buffer, count: int) -> Vector:
        """Return a view of the bytes."""
        size = memoryview(data).nbytes
        if size != 4 * count:
            raise Corrupt(f"float32: {size} bytes for {count} parameters")
        return np.frombuffer(data, "<f4")
