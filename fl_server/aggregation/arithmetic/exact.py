"""The exact sum: int64 fixed point, so that neither order nor grouping changes a bit.

Every value x of an update with weight n enters as ``n * rint(x * 2**scale_bits)``. Integers add
exactly, so a sum over any order, any grouping and any number of restarts is one and the same. What
could overflow is refused when it comes, by limits that do not depend on the other updates.
Arithmetic only: no files, no network, no clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]

BLOCK = 1 << 18
"""Values handled at a time: small enough to stay in a core's cache."""


@dataclass(frozen=True)
class FixedPoint:
    """The format of a round's sum.

    Args:
        scale_bits: the binary digits kept after the point.
        weight_bits: the sum of all weights of a round stays below ``2**weight_bits``.
    """

    scale_bits: int = 30
    weight_bits: int = 22

    @property
    def value_limit(self) -> float:
        """The largest absolute value of an update's element; the total stays within 62 bits."""
        return float(2 ** (62 - self.scale_bits - self.weight_bits))

    def weight_limit(self, updates: int) -> int:
        """The largest weight of one of ``updates`` updates."""
        return int((1 << self.weight_bits) // max(1, updates))

    def quantise(self, values: Float32s, out: Int64s, scratch: Float32s) -> None:
        """Write ``rint(values * 2**scale_bits)`` to ``out``.

        A float32 times a power of two is exact, and rint of it is a float32 again, so float32
        arithmetic loses nothing here.
        """
        np.multiply(values, np.float32(2.0**self.scale_bits), out=scratch)
        np.rint(scratch, out=scratch)
        np.copyto(out, scratch, casting="unsafe")

    def mean(self, sums: Int64s, total_weight: int) -> Float64s:
        """Return the weighted mean; ``total_weight`` must be positive."""
        if total_weight <= 0:
            raise ValueError("the total weight must be positive")
        mean: Float64s = sums.astype(np.float64) / (float(total_weight) * 2.0**self.scale_bits)
        return mean


class SumStore(Protocol):
    """Where the running sums live: memory, or a file for models that should not fill it."""

    def read(self, start: int, count: int) -> Int64s:
        """Return the sums of a block; may be a view that ``write`` need not copy back."""

    def write(self, start: int, sums: Int64s) -> None:
        """Keep the block's sums."""


class MemorySums:
    """Sums in one array."""

    def __init__(self, size: int) -> None:
        self._sums: Int64s = np.zeros(size, np.int64)

    def read(self, start: int, count: int) -> Int64s:
        """Return a view."""
        return self._sums[start : start + count]

    def write(self, start: int, sums: Int64s) -> None:
        """Copy, unless ``sums`` is the view itself."""
        own = self._sums[start : start + len(sums)]
        if own.ctypes.data != sums.ctypes.data:
            own[:] = sums


class ExactSum:
    """A weighted sum of vectors of ``size`` float32 values, added block by block."""

    def __init__(self, size: int, fixed: FixedPoint, store: SumStore) -> None:
        self.size = size
        self.total_weight = 0
        self._fixed = fixed
        self._store = store
        self._quantised: Int64s = np.empty(min(BLOCK, size), np.int64)
        self._scratch: Float32s = np.empty(min(BLOCK, size), np.float32)

    def add_block(self, start: int, values: Float32s, weight: int) -> None:
        """Add ``weight * values`` at ``start``; the caller has checked the limits."""
        for offset in range(0, len(values), BLOCK):
            part = values[offset : offset + BLOCK]
            if part[0] == 0 and not part.any():
                continue  # integers: adding zeros changes no bit
            quantised, scratch = self._quantised[: len(part)], self._scratch[: len(part)]
            self._fixed.quantise(part, quantised, scratch)
            np.multiply(quantised, np.int64(weight), out=quantised)
            sums = self._store.read(start + offset, len(part))
            np.add(sums, quantised, out=sums)
            self._store.write(start + offset, sums)

    def mean(self, start: int, count: int) -> Float64s:
        """Return the mean of a block of at most ``BLOCK`` values."""
        return self._fixed.mean(self._store.read(start, count), self.total_weight)
