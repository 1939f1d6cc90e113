"""A model's weights in memory: one contiguous float32 vector, and the tensors of other types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.errors import Corrupt
from storage.weights.layout import Layout, TensorSpec, dtype_name, numpy_type

Vector = npt.NDArray[np.float32]
Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Weights:
    """A layout, its float vector (contiguous float32), and its other tensors by name.

    Raises:
        Corrupt: the arrays do not fit the layout.
    """

    layout: Layout
    vector: Vector
    others: Mapping[str, Array]

    def __post_init__(self) -> None:
        vector = self.vector
        if vector.dtype != np.float32 or vector.ndim != 1 or not vector.flags.c_contiguous:
            raise Corrupt(f"weights: the vector is {vector.dtype}{vector.shape}, not flat float32")
        if vector.size != self.layout.size:
            raise Corrupt(f"weights: {vector.size} parameters, the layout has {self.layout.size}")
        if set(self.others) != {spec.name for spec in self.layout.others}:
            raise Corrupt("weights: the tensors beside the vector are not those of the layout")
        for spec in self.layout.others:
            array = self.others[spec.name]
            if array.shape != spec.shape or array.dtype != numpy_type(spec.dtype):
                raise Corrupt(f"weights: {spec.name!r} is {array.dtype}{array.shape}, not {spec}")

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, Any], dtypes: Mapping[str, str] | None = None
    ) -> Weights:
        """Return the weights with a copy of the arrays, in the mapping's order.

        Args:
            arrays: anything that ``numpy.asarray`` takes.
            dtypes: a tensor's own float type where its array has another (BF16 given as F32).

        Raises:
            ConfigError: safetensors has no such type.
            Corrupt: a name or shape is not allowed, or a value exceeds float32's range.
        """
        given = dtypes or {}
        found = {name: np.asarray(array) for name, array in arrays.items()}
        layout = Layout(
            tuple(
                TensorSpec(name, array.shape, given.get(name) or dtype_name(name, array.dtype))
                for name, array in found.items()
            )
        )
        vector = np.empty(layout.size, np.float32)
        for name, where in layout.offsets.items():
            copy_as_float32(vector[where], found[name].reshape(-1), name)
        others = {
            spec.name: np.array(found[spec.name], numpy_type(spec.dtype)) for spec in layout.others
        }
        return cls(layout, vector, others)

    def arrays(self) -> dict[str, Array]:
        """Return every tensor by name, in layout order: shaped views, floats as float32."""
        offsets = self.layout.offsets
        return {
            spec.name: self.vector[offsets[spec.name]].reshape(spec.shape)
            if spec.is_float
            else self.others[spec.name]
            for spec in self.layout.tensors
        }

    def with_vector(self, vector: Vector) -> Weights:
        """Return the same model with another float vector."""
        return Weights(self.layout, vector, self.others)


def copy_as_float32(target: Vector, source: Array, name: str) -> None:
    """Copy a float array into a part of a vector.

    Raises:
        Corrupt: a finite value is infinite in float32; names the tensor.
    """
    with np.errstate(over="ignore"):
        target[:] = source
    if source.dtype == np.float64 and not np.array_equal(np.isinf(target), np.isinf(source)):
        raise Corrupt(f"weights: a value of {name!r} leaves float32's range")
