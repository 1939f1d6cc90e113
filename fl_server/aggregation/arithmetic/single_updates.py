"""One vector of each update of a round, for rules that a sum does not serve: block by block."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from algorithms.base import BLOCK
from fl_server.aggregation.arithmetic.exact import Float32s, Float64s

_VALUES = 1 << 22
"""How many values of all updates together are in memory at a time."""
_GRAM_COLUMNS = 1 << 12
"""Dot products are added up in parts of so many coordinates, whatever a block is."""


class SingleUpdates(abc.ABC):
    """The same vector of several updates, in the order of their devices' names.

    Nothing that it returns depends on the order in which updates came, or on the size of a block.

    Attributes:
        size: the vector's values.
    """

    size: int

    @property
    @abc.abstractmethod
    def devices(self) -> list[str]:
        """Whose the updates are, sorted."""

    @abc.abstractmethod
    def read(self, start: int, count: int) -> Float32s:
        """Return at most ``BLOCK`` values from ``start`` on of all updates: [updates, count]."""

    def gram(self, devices: Sequence[str]) -> Float64s:
        """Return the dot products of all pairs: [devices, devices]; zeros where one has no update.

        They are added up in parts of ``_GRAM_COLUMNS``, whatever is read at a time.
        """
        count = len(self.devices)
        own: Float64s = np.zeros((count, count))
        width = min(BLOCK, max(1, _VALUES // count // _GRAM_COLUMNS) * _GRAM_COLUMNS)
        for start in range(0, self.size, width):
            values = self.read(start, min(width, self.size - start)).astype(np.float64)
            for first in range(0, values.shape[1], _GRAM_COLUMNS):
                piece = values[:, first : first + _GRAM_COLUMNS]
                own += piece @ piece.T
        places = [devices.index(each) for each in self.devices]
        found: Float64s = np.zeros((len(devices),) * 2)
        found[np.ix_(places, places)] = own
        return found

    def combined(self, start: int, count: int, combine: Callable[[Float32s], Float64s]) -> Float64s:
        """Return what ``combine`` makes of each coordinate of a block."""
        found: Float64s = np.empty(count)
        width = max(1, _VALUES // len(self.devices))
        for first in range(0, count, width):
            part = slice(first, min(first + width, count))
            found[part] = combine(self.read(start + first, part.stop - first))
        return found

    def weighted(self, start: int, count: int, factors: Mapping[str, float]) -> Float64s:
        """Return a block of the sum of the updates, each times its device's factor."""
        ordered = [factors[device_id] for device_id in self.devices]

        def combine(values: Float32s) -> Float64s:
            total: Float64s = np.zeros(values.shape[1])
            for row, factor in zip(values, ordered, strict=True):
                if factor:
                    total += factor * row.astype(np.float64)
            return total

        return self.combined(start, count, combine)


class KeptSingly(Protocol):
    """Where the vectors of single updates are kept."""

    def singles(self, name: str) -> SingleUpdates | None:
        """Return every update's vector of that name, None where a sum is kept of it, or none."""
        ...
