"""Clients that train narrower models: the same layers, with some of the units of each.

Which axes of a model have which layer's units follows from its layout: layers stand in their order,
each weight begins with the axis of its outputs, and the inputs of one are the outputs of one before
it. The inputs of the first layer and the outputs of the last are never narrowed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, TypeAlias

from algorithms.base import Arrays, DeviceFacts, Family
from algorithms.fedavg import FedAvg
from runtime.errors import ConfigError
from runtime.records import Bounds
from storage.weights import Axis, Layout, Slices, TensorSpec, Window

Axes: TypeAlias = tuple[Axis | None, ...]
"""Of a tensor's axes those that are made of units; None: an axis that is never narrowed."""

Share: TypeAlias = Annotated[float, Bounds(above=0, most=1)]

_LESS = 1e-9
# of a low-rank adapter the factor that its inputs are multiplied by, and that of its outputs
_READS_ADAPTER, _WRITES_ADAPTER = "lora_a", "lora_b"


@dataclass(frozen=True)
class Narrowed(FedAvg):
    """FedAvg in which a client may train some of the units of each hidden layer.

    Attributes:
        widths: how much of each layer a device trains, by its id or else by its profile, as
            `algorithm.widths.pi=0.25`. Others train the whole model; a device of which nothing is
            known yet trains the least.
    """

    family: ClassVar[Family] = "widths"

    widths: Annotated[dict[str, Share], Bounds(length=10_000)] = field(default_factory=dict)

    @property
    def narrow_widths(self) -> tuple[float, ...]:
        """The widths below 1 in the settings."""
        return tuple(sorted({width for width in self.widths.values() if width < 1}))

    def width(self, device: DeviceFacts, round_number: int, seed: int) -> float:
        """Return the width that the settings give the device."""
        del round_number, seed
        if device.device_id in self.widths:
            return self.widths[device.device_id]
        if not device.profile:
            return min(self.widths.values(), default=1.0)
        return self.widths.get(device.profile, 1.0)

    def part(self, width: float, round_number: int, layout: Layout) -> Slices | None:
        """Return ``width`` of the units of each hidden layer, rounded up."""
        if width >= 1:
            return None

        def window(axis: Axis | None) -> Window | None:
            count = 0 if axis is None else units_of(axis.units, width)
            if axis is None or count == axis.units:
                return None
            return Window(axis, self.first_unit(axis.units, round_number), count)

        return Slices(
            layout,
            {name: [window(axis) for axis in axes] for name, axes in axes_of(layout).items()},
        )

    def first_unit(self, units: int, round_number: int) -> int:
        """Return the first of a layer's units that a round's clients train."""
        del units, round_number
        return 0


def units_of(units: int, share: float) -> int:
    """Return how many units a share of a layer is, rounded up."""
    return max(1, math.ceil(units * share - _LESS))


def norms_without_statistics(layout: Layout) -> list[str]:
    """Return the weights of layers that normalise over units, as layer normalisation does."""
    return [
        tensors[0].name
        for tensors in _layers_of(layout)
        if all(len(each.shape) == 1 for each in tensors)
        and not any(_leaf(each).startswith("running_") for each in tensors)
    ]


def layout_of(arrays: Arrays) -> Layout:
    """Return the layout of named arrays or tensors."""
    return Layout(tuple(TensorSpec(name, tuple(arrays[name].shape)) for name in arrays))


def axes_of(layout: Layout) -> dict[str, Axes]:
    """Return which axes of each tensor are made of units.

    Raises:
        ConfigError: the inputs of a layer are not the outputs of one before it.
    """
    layers = _layers_of(layout)
    matrices = [tensors for tensors in layers if any(len(each.shape) > 1 for each in tensors)]
    if len(matrices) < 2:
        raise ConfigError("the model has no hidden layer, of which a device could train a part")
    walk, found = _Walk(), dict[str, Axes]()
    for tensors in layers:
        if _is_recurrent(tensors):
            found |= walk.recurrent(tensors, is_last=tensors is matrices[-1])
        elif tensors is matrices[0] and _is_embedding(tensors, matrices[1]):
            found |= walk.embedding(tensors)
        elif tensors in matrices:
            found |= walk.affine(tensors, is_last=tensors is matrices[-1])
        else:
            found |= {each.name: walk.vector(each) for each in tensors}
    return found


def multiplying(layout: Layout) -> frozenset[str]:
    """Return the weights and biases of the hidden layers that multiply their inputs.

    Recurrent layers are not among them: their output is no multiple of their weights.
    """
    matrices = [
        tensors for tensors in _layers_of(layout) if any(len(each.shape) > 1 for each in tensors)
    ]
    plain = [tensors for tensors in matrices[:-1] if not _is_recurrent(tensors)]
    # of a low-rank adapter one factor is enough
    return frozenset(each.name for tensors in plain for each in tensors if not _reads_adapter(each))


def _layers_of(layout: Layout) -> list[list[TensorSpec]]:
    """Return the float tensors, those of a layer side by side."""
    found: dict[str, list[TensorSpec]] = {}
    for spec in layout.floats:
        found.setdefault(spec.name.rpartition(".")[0], []).append(spec)
    return list(found.values())


def _is_recurrent(tensors: Sequence[TensorSpec]) -> bool:
    return any(_leaf(each).startswith("weight_hh") for each in tensors)


def _is_embedding(tensors: Sequence[TensorSpec], following: Sequence[TensorSpec]) -> bool:
    """Whether the first layer looks rows up: the next one's inputs are its second axis."""
    inputs = following[0].shape[1:2]
    shape = tensors[0].shape
    return len(tensors) == 1 and len(shape) == 2 and shape[1:] == inputs and shape[:1] != inputs


def _reads_adapter(spec: TensorSpec) -> bool:
    return _leaf(spec).startswith(_READS_ADAPTER)


def _leaf(spec: TensorSpec) -> str:
    return spec.name.rpartition(".")[2]


class _Walk:
    """Goes over a model's layers in their order, from what one gives to what the next one takes."""

    def __init__(self) -> None:
        self._given: Axis | None = None
        self._earlier: set[int] = set()

    def affine(self, tensors: Sequence[TensorSpec], *, is_last: bool) -> dict[str, Axes]:
        """Return the axes of a linear layer or a convolution."""
        outputs = {each.shape[0] for each in tensors if each.shape and not _reads_adapter(each)}
        if len(outputs) > 1:
            shapes = ", ".join(f"{each.name} {each.shape}" for each in tensors)
            raise ConfigError(f"these weights of one layer have no outputs in common: {shapes}")
        given = None if is_last else Axis(outputs.pop())
        found: dict[str, Axes] = {}
        for each in tensors:
            rest, inputs = len(each.shape) - 2, tuple[Axis | None, ...]()
            if _leaf(each).startswith(_WRITES_ADAPTER):
                inputs = (None,)
            elif rest >= 0:
                inputs = (self._taken(each.name, each.shape[1]), *[None] * rest)
            own = None if _reads_adapter(each) else given
            found[each.name] = (own, *inputs) if each.shape else ()
        self._give(given)
        return found

    def embedding(self, tensors: Sequence[TensorSpec]) -> dict[str, Axes]:
        """Return the axes of a table of rows, one for each number that a model may be given."""
        [table] = tensors
        self._give(Axis(table.shape[1]))
        return {table.name: (None, self._given)}

    def recurrent(self, tensors: Sequence[TensorSpec], *, is_last: bool) -> dict[str, Axes]:
        """Return the axes of a GRU or an LSTM."""
        if is_last:
            raise ConfigError(f"{tensors[0].name}: the last layer is a recurrent one")
        hidden = next(each.shape[1] for each in tensors if _leaf(each).startswith("weight_hh"))
        found: dict[str, Axes] = {}
        for each in tensors:
            gates, rest = divmod(each.shape[0], hidden)
            if rest:
                raise ConfigError(f"{each.name}: {each.shape} is no multiple of {hidden} units")
            axes: list[Axis | None] = [Axis(hidden, 1, gates)]
            if _leaf(each).startswith("weight_ih_l0"):
                axes.append(self._taken(each.name, each.shape[1]))
            elif len(each.shape) > 1:
                axes.append(Axis(hidden))
            found[each.name] = tuple(axes)
        self._give(Axis(hidden))
        return found

    def vector(self, spec: TensorSpec) -> Axes:
        """Return the axis of a weight or a statistic for each unit, as of a normalisation."""
        return tuple(self._taken(spec.name, side) for side in spec.shape)

    def _give(self, axis: Axis | None) -> None:
        self._given = axis
        if axis is not None:
            self._earlier.add(axis.units)

    def _taken(self, name: str, size: int) -> Axis | None:
        """Return the axis of so many inputs."""
        given = self._given
        if given is None or size == 1:
            return None
        if size == given.units or size in self._earlier:
            return Axis(size)  # of a layer before, where one is passed by
        if size % given.units:
            raise ConfigError(f"{name} takes {size} inputs, and the layer before has {given.units}")
        return Axis(given.units, size // given.units)
