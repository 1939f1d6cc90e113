"""The stored form of weights: a safetensors file, which any reader of safetensors opens.

Every float tensor is F32, in layout order, end to end, so that any block of the vector is one byte
range of the file; tensors of other types follow. The tensors' own types are in the file's
``__metadata__``.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from runtime.errors import Corrupt
from storage.weights.layout import (
    FLOAT_DTYPES,
    MAX_TENSORS,
    NUMPY_TYPES,
    Layout,
    TensorSpec,
    numpy_type,
    require_valid,
)
from storage.weights.model import Array, Weights, copy_as_float32

MAX_HEADER_BYTES = 16 << 20
_DTYPES_KEY = "rengo.dtypes"
_BLOCK_BYTES = 1 << 20


class Reader(Protocol):
    """A stream that is only read forward."""

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes, none at the end."""
        ...


def encode_header(layout: Layout) -> bytes:
    """Return the start of the stored form; the float vector follows it, then the others."""
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
        weights.others[spec.name].astype(numpy_type(spec.dtype), copy=False).tobytes()
        for spec in weights.layout.others
    )


def stored_size(layout: Layout) -> int:
    """Return the size in bytes of the stored form."""
    return len(encode_header(layout)) + sum(spec.stored_bytes for spec in layout.tensors)


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


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise Corrupt("weights: the header has a key twice")
    return found


def _parse_json(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text.decode("utf-8"), object_pairs_hook=_no_duplicates)
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


def _nonnegative_ints(value: Any, name: str, what: str) -> tuple[int, ...]:
    # type() and not isinstance: True is an int
    if not isinstance(value, list) or any(type(item) is not int or item < 0 for item in value):
        raise Corrupt(f"weights: {what} of {name[:64]!r} is not a list of counts")
    return tuple(value)


def _parse_entry(name: str, entry: Any) -> _Entry:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise Corrupt(f"weights: the entry of {name[:64]!r} is not dtype, shape and data_offsets")
    dtype = entry["dtype"]
    if not isinstance(dtype, str) or dtype not in NUMPY_TYPES:
        raise Corrupt(
            f"weights: {name[:64]!r} has a type that is not one of {', '.join(NUMPY_TYPES)}"
        )
    shape = _nonnegative_ints(entry["shape"], name, "the shape")
    offsets = _nonnegative_ints(entry["data_offsets"], name, "data_offsets")
    require_valid(TensorSpec(name, shape, dtype))
    if (
        len(offsets) != 2
        or offsets[1] - offsets[0] != math.prod(shape) * numpy_type(dtype).itemsize
    ):
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
        raw = np.empty(entry.shape, numpy_type(entry.dtype))
        _read_into(file, raw, spec.name)
        if not spec.is_float:
            others[spec.name] = _checked_bool(raw, spec)
        elif entry.dtype == "BF16":
            wide = raw.reshape(-1).astype("<u4") << np.uint32(16)
            vector[layout.offsets[spec.name]] = wide.view("<f4")
        else:
            copy_as_float32(vector[layout.offsets[spec.name]], raw.reshape(-1), spec.name)
    return Weights(layout, vector, others)


def _checked_bool(array: Array, spec: TensorSpec) -> Array:
    if spec.dtype == "BOOL" and bool((array.view(np.uint8) > 1).any()):
        raise Corrupt(f"weights: {spec.name!r} holds a byte that is neither true nor false")
    return array
