"""Model weights: one contiguous float32 vector with a layout, stored as safetensors. Pure.

In the stored form every float tensor is F32, in layout order, end to end, so that any block of the
vector is one byte range of the file; tensors of other types follow. The tensors' own types stand in
the file's ``__metadata__``. Any safetensors reader opens the file.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt

from runtime.errors import ConfigError, Corrupt

Vector = npt.NDArray[np.float32]
Array = npt.NDArray[Any]

FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")
# BF16 has no numpy type: it is read as the upper half of a float32
_NUMPY: dict[str, np.dtype[Any]] = {
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
_NAME_OF = {dtype: name for name, dtype in _NUMPY.items() if name != "BF16"}

MAX_HEADER_BYTES = 16 << 20
MAX_TENSORS = 100_000
MAX_NAME_CHARS = 512
MAX_DIMENSIONS = 32
MAX_ELEMENTS = 1 << 48
_DTYPES_KEY = "rengo.dtypes"
_BLOCK_BYTES = 1 << 20


class Reader(Protocol):
    """A stream that is only read forward."""

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes, none at the end."""
        ...


@dataclass(frozen=True)
class TensorSpec:
    """A tensor's name, shape and own type (as safetensors names it, for example ``F32``)."""

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
        return self.count * _NUMPY[self.stored_dtype].itemsize


@dataclass(frozen=True)
class Layout:
    """The tensors of a model in order; two models agree exactly when their layouts' hashes do.

    Raises:
        Corrupt: a name is taken twice, or a name, shape or type is not allowed.
    """

    tensors: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        if len(self.tensors) > MAX_TENSORS:
            raise Corrupt(f"layout: {len(self.tensors)} tensors, at most {MAX_TENSORS}")
        seen: set[str] = set()
        for spec in self.tensors:
            _check_spec(spec)
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
        """The tensors beside the vector, in order."""
        return tuple(spec for spec in self.tensors if not spec.is_float)

    @cached_property
    def size(self) -> int:
        """The number of float parameters."""
        return sum(spec.count for spec in self.floats)

    @cached_property
    def offsets(self) -> dict[str, slice]:
        """Where each float tensor stands in the vector."""
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

    @cached_property
    def stored_bytes(self) -> int:
        """The size of the whole file in the stored form."""
        return len(encode_header(self)) + sum(spec.stored_bytes for spec in self.tensors)


@dataclass(frozen=True, eq=False)
class Weights:
    """A layout with its float vector (contiguous float32) and its other tensors by name.

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
            if array.shape != spec.shape or array.dtype != _NUMPY[spec.dtype]:
                raise Corrupt(f"weights: {spec.name!r} is {array.dtype}{array.shape}, not {spec}")

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, Any], dtypes: Mapping[str, str] | None = None
    ) -> Weights:
        """Return the weights with a copy of the arrays, in the mapping's order.

        Args:
            arrays: anything that ``numpy.asarray`` takes.
            dtypes: a tensor's own float type where its array has another (BF16 handed in as F32).

        Raises:
            ConfigError: an array's type has no place in safetensors.
            Corrupt: a name or shape is not allowed, or a value leaves float32's range.
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
            _fill(vector[where], found[name].reshape(-1), name)
        others = {
            spec.name: np.array(found[spec.name], _NUMPY[spec.dtype]) for spec in layout.others
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


def dtype_name(name: str, dtype: np.dtype[Any]) -> str:
    """Return safetensors' name of a numpy type; ConfigError names the tensor when it has none."""
    found = _NAME_OF.get(dtype.newbyteorder("<") if dtype.byteorder == ">" else dtype)
    if found is None:
        raise ConfigError(f"tensor {name!r}: type {dtype} is not one of {', '.join(_NUMPY)}")
    return found


def numpy_type(dtype: str) -> np.dtype[Any]:
    """Return the numpy type of a safetensors type; BF16's is that of its bits."""
    return _NUMPY[dtype]


def encode_header(layout: Layout) -> bytes:
    """Return the start of the stored form; the float vector follows at once, then the others."""
    ends: dict[str, int] = {}
    position = 0
    for spec in (*layout.floats, *layout.others):
        position += spec.stored_bytes
        ends[spec.name] = position
    own = {spec.name: spec.dtype for spec in layout.floats if spec.dtype != "F32"}
    header: dict[str, Any] = {"__metadata__": {"format": "pt", _DTYPES_KEY: json.dumps(own)}}
    for spec in layout.tensors:
        end = ends[spec.name]
        header[spec.name] = {
            "dtype": spec.stored_dtype,
            "shape": list(spec.shape),
            "data_offsets": [end - spec.stored_bytes, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise Corrupt(f"layout: its header takes {len(text)} bytes, at most {MAX_HEADER_BYTES}")
    return struct.pack("<Q", len(text)) + text


def encode_others(weights: Weights) -> bytes:
    """Return what follows the float vector in the stored form."""
    return b"".join(
        weights.others[spec.name].astype(_NUMPY[spec.dtype], copy=False).tobytes()
        for spec in weights.layout.others
    )


def write_safetensors(weights: Weights, out: BinaryIO) -> int:
    """Write the stored form and return its size in bytes."""
    header, tail = encode_header(weights.layout), encode_others(weights)
    out.write(header)
    data = weights.vector.astype("<f4", copy=False).view(np.uint8).data
    for start in range(0, len(data), _BLOCK_BYTES):
        out.write(data[start : start + _BLOCK_BYTES])
    out.write(tail)
    return len(header) + len(data) + len(tail)


def read_layout(stream: Reader) -> tuple[Layout, int]:
    """Read the header of a file in the stored form.

    Returns:
        The layout, and the byte at which the float vector begins.

    Raises:
        Corrupt: the header is damaged, or the file is safetensors but not in the stored form.
    """
    header = _read_header(stream)
    position = 0
    for spec in (*header.layout.floats, *header.layout.others):
        entry = header.entries[spec.name]
        if entry.dtype != spec.stored_dtype or entry.start != position:
            raise Corrupt(f"weights: tensor {spec.name!r} is not where the stored form has it")
        position = entry.end
    return header.layout, header.data_offset


def read_safetensors(path: Path) -> Weights:
    """Read any safetensors file of float, integer and boolean tensors.

    Raises:
        Corrupt: the file is damaged; the text names it and what.
    """
    try:
        with path.open("rb") as file:
            header = _read_header(file)
            size = path.stat().st_size
            if size != header.data_offset + header.data_bytes:
                raise Corrupt(
                    f"weights: {size} bytes, its header says {header.data_offset} + "
                    f"{header.data_bytes}"
                )
            return _read_data(file, header)
    except Corrupt as error:
        raise Corrupt(f"{path}: {error}") from error


@dataclass(frozen=True)
class _Entry:
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class _SafetensorsHeader:
    layout: Layout
    entries: Mapping[str, _Entry]
    data_offset: int
    data_bytes: int


def _check_spec(spec: TensorSpec) -> None:
    if not 0 < len(spec.name) <= MAX_NAME_CHARS or spec.name == "__metadata__":
        raise Corrupt(f"layout: {spec.name[:64]!r} cannot name a tensor")
    if any("\ud800" <= char <= "\udfff" for char in spec.name):
        raise Corrupt(f"layout: the name {spec.name!r} is not Unicode text")
    if spec.dtype not in _NUMPY:
        raise Corrupt(f"layout: {spec.name!r} has the unknown type {spec.dtype[:16]!r}")
    if len(spec.shape) > MAX_DIMENSIONS or any(side < 0 for side in spec.shape):
        raise Corrupt(f"layout: {spec.name!r} has a shape that is not allowed")
    if spec.count > MAX_ELEMENTS:
        raise Corrupt(f"layout: {spec.name!r} has more than {MAX_ELEMENTS} elements")


def _fill(target: Vector, source: Array, name: str) -> None:
    with np.errstate(over="ignore"):
        target[:] = source
    if source.dtype == np.float64 and not np.array_equal(np.isinf(target), np.isinf(source)):
        raise Corrupt(f"weights: a value of {name!r} leaves float32's range")


def _read_exactly(stream: Reader, size: int, what: str) -> bytes:
    parts: list[bytes] = []
    left = size
    while left:
        part = stream.read(min(left, _BLOCK_BYTES))
        if not part:
            raise Corrupt(f"weights: the file ends within {what}")
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise Corrupt("weights: the header has a key twice")
    return found


def _parse_json(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise Corrupt("weights: the header is not JSON") from error
    if not isinstance(found, dict):
        raise Corrupt("weights: the header is not a JSON object")
    return found


def _read_header(stream: Reader) -> _SafetensorsHeader:
    (length,) = struct.unpack("<Q", _read_exactly(stream, 8, "the header's length"))
    if not 2 <= length <= MAX_HEADER_BYTES:
        raise Corrupt(f"weights: a header of {length} bytes, at most {MAX_HEADER_BYTES}")
    fields = _parse_json(_read_exactly(stream, length, "the header"))
    own = _own_dtypes(fields.pop("__metadata__", {}))
    if len(fields) > MAX_TENSORS:
        raise Corrupt(f"weights: {len(fields)} tensors, at most {MAX_TENSORS}")
    entries = {name: _parse_entry(name, entry) for name, entry in fields.items()}
    specs = []
    for name, entry in entries.items():
        dtype = own.get(name, entry.dtype)
        if (dtype in FLOAT_DTYPES) != (entry.dtype in FLOAT_DTYPES):
            raise Corrupt(f"weights: {name!r} is stored as {entry.dtype} but called {dtype[:16]!r}")
        specs.append(TensorSpec(name, entry.shape, dtype))
    layout = Layout(tuple(specs))
    return _SafetensorsHeader(layout, entries, 8 + length, _check_extent(entries))


def _own_dtypes(metadata: Any) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise Corrupt("weights: __metadata__ is not a map of text to text")
    own = _parse_json(metadata.get(_DTYPES_KEY, "{}").encode("utf-8", "surrogatepass"))
    if not all(isinstance(dtype, str) for dtype in own.values()):
        raise Corrupt(f"weights: {_DTYPES_KEY} is not a map of text to text")
    return own


def _counts(value: Any, name: str, what: str) -> tuple[int, ...]:
    # type() and not isinstance: True is an int
    if not isinstance(value, list) or any(type(item) is not int or item < 0 for item in value):
        raise Corrupt(f"weights: {what} of {name[:64]!r} is not a list of counts")
    return tuple(value)


def _parse_entry(name: str, entry: Any) -> _Entry:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise Corrupt(f"weights: the entry of {name[:64]!r} is not dtype, shape and data_offsets")
    dtype = entry["dtype"]
    if not isinstance(dtype, str) or dtype not in _NUMPY:
        raise Corrupt(f"weights: {name[:64]!r} has a type that is not one of {', '.join(_NUMPY)}")
    shape = _counts(entry["shape"], name, "the shape")
    offsets = _counts(entry["data_offsets"], name, "data_offsets")
    _check_spec(TensorSpec(name, shape, dtype))
    if len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * _NUMPY[dtype].itemsize:
        raise Corrupt(f"weights: the shape of {name!r} does not fit its bytes")
    return _Entry(dtype, shape, *offsets)


def _check_extent(entries: Mapping[str, _Entry]) -> int:
    end = 0
    for entry in sorted(entries.values(), key=lambda entry: (entry.start, entry.end)):
        if entry.start != end:
            raise Corrupt("weights: the tensors overlap or leave a hole")
        end = entry.end
    return end


def _in_file_order(header: _SafetensorsHeader) -> Iterator[tuple[TensorSpec, _Entry]]:
    specs = {spec.name: spec for spec in header.layout.tensors}
    ordered = sorted(header.entries.items(), key=lambda item: (item[1].start, item[1].end))
    return ((specs[name], entry) for name, entry in ordered)


def _read_into(file: BinaryIO, array: Array, name: str) -> None:
    view = array.reshape(-1).view(np.uint8).data
    if file.readinto(view) != len(view):  # type: ignore[attr-defined]
        raise Corrupt(f"weights: the file ends within tensor {name!r}")


def _read_data(file: BinaryIO, header: _SafetensorsHeader) -> Weights:
    layout = header.layout
    vector = np.empty(layout.size, np.float32)
    others: dict[str, Array] = {}
    for spec, entry in _in_file_order(header):
        if spec.is_float and entry.dtype == "F32":
            _read_into(file, vector[layout.offsets[spec.name]], spec.name)
            continue
        raw = np.empty(entry.shape, _NUMPY[entry.dtype])
        _read_into(file, raw, spec.name)
        if not spec.is_float:
            others[spec.name] = _checked_bool(raw, spec)
        elif entry.dtype == "BF16":
            wide = raw.reshape(-1).astype("<u4") << np.uint32(16)
            vector[layout.offsets[spec.name]] = wide.view("<f4")
        else:
            _fill(vector[layout.offsets[spec.name]], raw.reshape(-1), spec.name)
    return Weights(layout, vector, others)


def _checked_bool(array: Array, spec: TensorSpec) -> Array:
    if spec.dtype == "BOOL" and bool((array.view(np.uint8) > 1).any()):
        raise Corrupt(f"weights: {spec.name!r} holds a byte that is neither true nor false")
    return array
