"""An update of a part of the model, as vectors of the whole model: its values, and where they are.

Both are made block by block, when they are added to a sum.
"""

from __future__ import annotations

import numpy as np

from algorithms.base import BLOCK
from fl_server.aggregation.arithmetic.exact import Float32s
from fl_server.aggregation.spool import Values
from storage.weights import Places, Slices


class ScatteredPart:
    """The values of a part at their places in the whole, zeros elsewhere; it closes the part."""

    def __init__(self, part: Values, slices: Slices) -> None:
        self.size = slices.layout.size
        self._part, self._slices = part, slices

    def read(self, start: int, count: int) -> Float32s:
        """See :class:`fl_server.aggregation.spool.Values`."""
        found = np.zeros(count, np.float32)
        sources = self._slices.sources(start, count)
        is_in = sources >= 0
        sources = sources[is_in]
        if not sources.size:
            return found
        first, last = int(sources.min()), int(sources.max())
        if last - first < BLOCK:
            found[is_in] = self._part.read(first, last - first + 1)[sources - first]
        else:
            found[is_in] = self._from_blocks(sources)
        return found

    def _from_blocks(self, sources: Places) -> Float32s:
        """Return values that lie apart, as where the units of a window go round."""
        found = np.empty(sources.size, np.float32)
        of_block = sources // BLOCK
        for number in np.unique(of_block).tolist():
            first = number * BLOCK
            block = self._part.read(first, min(BLOCK, self._part.size - first))
            chosen = of_block == number
            found[chosen] = block[sources[chosen] - first]
        return found

    def close(self) -> None:
        """See :class:`fl_server.aggregation.spool.Values`."""
        self._part.close()


class CoveredPart:
    """Ones where an update has values, zeros elsewhere.

    Args:
        size: of the whole vector.
        slices: what the update has; None: all.
    """

    def __init__(self, size: int, slices: Slices | None) -> None:
        self.size = size
        self._slices = slices

    def read(self, start: int, count: int) -> Float32s:
        """See :class:`fl_server.aggregation.spool.Values`."""
        if self._slices is None:
            return np.ones(count, np.float32)
        return (self._slices.sources(start, count) >= 0).astype(np.float32)

    def close(self) -> None:
        """Do nothing: it holds nothing."""
