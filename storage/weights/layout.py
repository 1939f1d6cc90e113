"""The tensors of a model: their names, shapes and types, in order."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from runtime.errors import ConfigError, Corrupt

FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")
# BF16 has no numpy type: it is read as the upper half of a float32
NUMPY_TYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_NAME_OF = {dtype: name for name, dtype in NUMPY_TYPES.items() if name != "BF16"}

MAX_TENSORS = 100_000
MAX_NAME_CHARS = 512
MAX_DIMENSIONS = 32
MAX_ELEMENTS = 1 << 48


@dataclass(frozen=True)
class TensorSpec:
    """A tensor's name, shape and own type, as safetensors names it, for example ``F32``."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "F32"

    @property
    def count(self) -> int:
        """The number of elements; 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def is_float(self) -> bool:
        """Whether the tensor is part of the float vector."""
        return self.dtype in FLOAT_DTYPES

    @property
    def stored_dtype(self) -> str:
        """The type in the stored form: floats are F32 there."""
        return "F32" if self.is_float else self.dtype

    @property
    def stored_bytes(self) -> int:
        """The size in the stored form."""
        return self.count * numpy_type(self.stored_dtype).itemsize


@dataclass(frozen=True)
class Layout:
    """The tensors of a model in order; two models fit when their layouts have the same hash.

    Raises:
        Corrupt: two tensors have one name, or a name, shape or type is not allowed.
    """

    tensors: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        if len(self.tensors) > MAX_TENSORS:
            raise Corrupt(f"layout: {len(self.tensors)} tensors, at most {MAX_TENSORS}")
        seen: set[str] = set()
        for spec in self.tensors:
            require_valid(spec)
            if spec.name in seen:
                raise Corrupt(f"layout: tensor {spec.name!r} appears twice")
            seen.add(spec.name)
        if sum(spec.count for spec in self.tensors) > MAX_ELEMENTS:
            raise Corrupt(f"layout: more than {MAX_ELEMENTS} elements")

    @cached_property
    def floats(self) -> tuple[TensorSpec, ...]:
        """The tensors that make up the vector, in order."""
        return tuple(spec for spec in self.tensors if spec.is_float)

    @cached_property
    def others(self) -> tuple[TensorSpec, ...]:
        """The tensors that are not part of the vector, in order."""
        return tuple(spec for spec in self.tensors if not spec.is_float)

    @cached_property
    def size(self) -> int:
        """The number of float parameters."""
        return sum(spec.count for spec in self.floats)

    @cached_property
    def offsets(self) -> dict[str, slice]:
        """The position of each float tensor in the vector."""
        found, start = {}, 0
        for spec in self.floats:
            found[spec.name] = slice(start, start + spec.count)
            start += spec.count
        return found

    @cached_property
    def hash(self) -> str:
        """The sha256 of names, types and shapes in order, in hex."""
        rows = [[spec.name, spec.dtype, list(spec.shape)] for spec in self.tensors]
        text = json.dumps(rows, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


def dtype_name(name: str, dtype: np.dtype[Any]) -> str:
    """Return safetensors' name of a numpy type; ConfigError names the tensor when it has none."""
    found = _NAME_OF.get(dtype.newbyteorder("<") if dtype.byteorder == ">" else dtype)
    if found is None:
        raise ConfigError(f"tensor {name!r}: type {dtype} is not one of {', '.join(NUMPY_TYPES)}")
    return found


def numpy_type(dtype: str) -> np.dtype[Any]:
    """Return the numpy type of a safetensors type; BF16's is that of its bits."""
    return NUMPY_TYPES[dtype]


def require_valid(spec: TensorSpec) -> None:
    """Raise Corrupt for a name, type or shape that a file of weights may not have."""
    if not 0 < len(spec.name) <= MAX_NAME_CHARS or spec.name == "__metadata__":
        raise Corrupt(f"layout: {spec.name[:64]!r} cannot name a tensor")
    if any("\ud800" <= char <= "\udfff" for char in spec.name):
        raise Corrupt(f"layout: the name {spec.name!r} is not Unicode text")
    if spec.dtype not in NUMPY_TYPES:
        raise Corrupt(f"layout: {spec.name!r} has the unknown type {spec.dtype[:16]!r}")
    if len(spec.shape) > MAX_DIMENSIONS or any(side < 0 for side in spec.shape):
        raise Corrupt(f"layout: {spec.name!r} has a shape that is not allowed")
    if spec.count > MAX_ELEMENTS:
        raise Corrupt(f"layout: {spec.name!r} has more than {MAX_ELEMENTS} elements")
