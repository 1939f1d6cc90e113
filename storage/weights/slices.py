"""Parts of a model: which indices of its tensors' axes they have, and where their values lie. Pure.

A part is a model with the same tensors, some of them smaller. Nothing here holds more than a block
of indices, so that a part of a large model is read and added up block by block.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from runtime.errors import ConfigError
from storage.weights.layout import Layout, TensorSpec
from storage.weights.model import Vector

Places: TypeAlias = npt.NDArray[np.int64]
Values = TypeVar("Values", bound=npt.NDArray[Any])

_BLOCK = 1 << 18
_NOWHERE = -(1 << 60)
"""So far below 0 that no place in a part brings it back."""


@dataclass(frozen=True)
class Axis:
    """An axis that is made of a layer's units, which are its neurons or channels.

    Attributes:
        units: how many.
        each: the values of each unit that stand together, such as a channel's pixels once they are
            flattened.
        groups: how often all units are repeated, as the gates of a recurrent layer.
    """

    units: int
    each: int = 1
    groups: int = 1

    @property
    def size(self) -> int:
        """The length of the axis."""
        return self.units * self.each * self.groups


@dataclass(frozen=True)
class Window:
    """``count`` units of an axis from ``first`` on; after the last one comes the first one.

    Raises:
        ConfigError: the axis has no such units.
    """

    axis: Axis
    first: int
    count: int

    def __post_init__(self) -> None:
        if not (0 <= self.first < self.axis.units and 1 <= self.count <= self.axis.units):
            raise ConfigError(f"{self.count} units from {self.first} on, of {self.axis.units}")

    @property
    def size(self) -> int:
        """The number of indices."""
        return self.count * self.axis.each * self.axis.groups

    def indices(self) -> Places:
        """Return the indices of the axis that the window has, in the part's order."""
        axis = self.axis
        units = (self.first + np.arange(self.count, dtype=np.int64)) % axis.units
        of_group = (units[:, None] * axis.each + np.arange(axis.each)).reshape(-1)
        starts = np.arange(axis.groups)[:, None] * (axis.units * axis.each)
        return (starts + of_group).reshape(-1)


Windows: TypeAlias = Mapping[str, Sequence[Window | None]]
"""A window for each axis of a tensor, None for a whole axis; tensors left out are whole."""


class Slices:
    """A part of a model.

    Attributes:
        layout: of the whole model.
        part: of the part.

    Raises:
        ConfigError: a window is not of the tensor's axis.
    """

    def __init__(self, layout: Layout, windows: Windows) -> None:
        self.layout = layout
        self._windows = {name: tuple(kept) for name, kept in windows.items() if any(kept)}
        self.part = Layout(tuple(self._part_of(spec) for spec in layout.tensors))
        self._tensors = [
            _Tensor(spec, self._windows.get(spec.name, ()), layout, self.part)
            for spec in layout.floats
        ]

    @cached_property
    def digest(self) -> str:
        """A name for the part among all parts of models of the layout."""
        rows = [
            [
                name,
                [None if w is None else [w.axis.each, w.axis.groups, w.first, w.count] for w in k],
            ]
            for name, k in sorted(self._windows.items())
        ]
        text = json.dumps([self.layout.hash, rows], separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def take(self, vector: Values) -> Values:
        """Return the part of a vector of the whole model.

        >>> layout = Layout((TensorSpec("w", (3, 2)),))
        >>> part = Slices(layout, {"w": [Window(Axis(3), 2, 2), None]})
        >>> part.take(np.arange(6.0)).tolist()
        [4.0, 5.0, 0.0, 1.0]
        """
        taken: Values = np.empty(self.part.size, vector.dtype)  # type: ignore[assignment]
        for start in range(0, self.part.size, _BLOCK):
            places = self.places(start, min(_BLOCK, self.part.size - start))
            taken[start : start + len(places)] = vector[places]
        return taken

    def put(self, part: Vector, into: Vector) -> None:
        """Set the part's values in a vector of the whole model; the others stay as they are."""
        for start in range(0, self.part.size, _BLOCK):
            places = self.places(start, min(_BLOCK, self.part.size - start))
            into[places] = part[start : start + len(places)]

    def places(self, start: int, count: int) -> Places:
        """Return where in the whole vector a block of the part's values lies."""
        found = np.empty(count, np.int64)
        starts = [tensor.part_start for tensor in self._tensors]
        for tensor, low, high in _within(self._tensors, starts, start, count):
            first = low - tensor.part_start
            found[low - start : high - start] = tensor.places(first, high - low) + tensor.start
        return found

    def sources(self, start: int, count: int) -> Places:
        """Return where in the part a block of the whole vector lies, -1 for what it has not."""
        found = np.empty(count, np.int64)
        starts = [tensor.start for tensor in self._tensors]
        for tensor, low, high in _within(self._tensors, starts, start, count):
            sources = tensor.sources(low - tensor.start, high - low)
            sources[sources >= 0] += tensor.part_start
            found[low - start : high - start] = sources
        return found

    def _part_of(self, spec: TensorSpec) -> TensorSpec:
        windows = self._windows.get(spec.name)
        if windows is None:
            return spec
        sizes = [None if each is None else each.axis.size for each in windows]
        fits = len(sizes) == len(spec.shape) and all(
            size in (None, side) for size, side in zip(sizes, spec.shape, strict=True)
        )
        if not fits or not spec.is_float:
            raise ConfigError(
                f"tensor {spec.name!r} of type {spec.dtype} and shape {spec.shape} has no part "
                f"with windows of axes of {sizes}"
            )
        shape = (
            side if each is None else each.size
            for side, each in zip(spec.shape, windows, strict=True)
        )
        return TensorSpec(spec.name, tuple(shape), spec.dtype)


@dataclass(frozen=True)
class _Side:
    """An axis, or several whole ones in a row: its length here and in the part."""

    full: int
    part: int
    window: Window | None

    @cached_property
    def forward(self) -> Places | None:
        return None if self.window is None else self.window.indices()

    @cached_property
    def inverse(self) -> Places | None:
        if self.forward is None:
            return None
        found = np.full(self.full, -1, np.int64)
        found[self.forward] = np.arange(self.part)
        return found


class _Tensor:
    """One tensor's values in the whole vector and in the part's; places count from its start."""

    def __init__(
        self, spec: TensorSpec, windows: Sequence[Window | None], layout: Layout, part: Layout
    ) -> None:
        self.start, self.part_start = layout.offsets[spec.name].start, part.offsets[spec.name].start
        self.sides: list[_Side] = []
        for side, window in zip(spec.shape, windows or [None] * len(spec.shape), strict=True):
            if window is not None:
                self.sides.append(_Side(side, window.size, window))
            elif self.sides and self.sides[-1].window is None:
                self.sides[-1] = _Side(self.sides[-1].full * side, self.sides[-1].part * side, None)
            else:
                self.sides.append(_Side(side, side, None))

    def places(self, first: int, count: int) -> Places:
        rest, found, stride = np.arange(first, first + count), np.zeros(count, np.int64), 1
        for side in reversed(self.sides):
            rest, at = np.divmod(rest, side.part)
            found += stride * (at if side.forward is None else side.forward[at])
            stride *= side.full
        return found

    def sources(self, first: int, count: int) -> Places:
        row = self._row
        if row is None:
            return np.maximum(_sources(self.sides, first, count), -1)
        # whole rows, of which the block is a cut
        begin, end = first // row.size, -(-(first + count) // row.size)
        rows = _sources(self.sides[:1], begin, end - begin)
        rows = np.where(rows < 0, _NOWHERE, rows * self._part_row)
        found: Places = (rows[:, None] + row).reshape(-1)[first - begin * row.size :][:count]
        np.maximum(found, -1, out=found)
        return found

    @cached_property
    def _row(self) -> Places | None:
        """What a row of the first axis has of the part's row; None where a row is a large one."""
        size = math.prod(side.full for side in self.sides[1:])
        return _sources(self.sides[1:], 0, size) if self.sides and size <= _BLOCK else None

    @cached_property
    def _part_row(self) -> int:
        return math.prod(side.part for side in self.sides[1:])


def _sources(sides: Sequence[_Side], first: int, count: int) -> Places:
    """Return where in the part values of these axes lie, below 0 where the part has them not."""
    rest, found, stride = np.arange(first, first + count), np.zeros(count, np.int64), 1
    for side in reversed(sides):
        rest, at = np.divmod(rest, side.full)
        if side.inverse is not None:
            missing = side.inverse[at] < 0
            at = side.inverse[at]
            found[missing] = _NOWHERE
        found += stride * at
        stride *= side.part
    return found


def _within(
    tensors: Sequence[_Tensor], starts: Sequence[int], start: int, count: int
) -> list[tuple[_Tensor, int, int]]:
    """Return the tensors of a block with the ends of their values in it.

    Args:
        starts: where each tensor begins; one without values begins where the next one does.
    """
    found, low, end = [], start, start + count
    while low < end:
        index = bisect.bisect_right(starts, low) - 1
        high = min(end, starts[index + 1] if index + 1 < len(starts) else end)
        found.append((tensors[index], low, high))
        low = high
    return found
