from __future__ import annotations

import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest

from runtime.errors import ConfigError, Corrupt
from storage.weights import (
    Layout,
    TensorSpec,
    Weights,
    encode_header,
    encode_others,
    read_layout,
    read_safetensors,
    stored_size,
    write_safetensors,
)


def model() -> Weights:
    return Weights.from_arrays(
        {
            "0.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
            "steps": np.int64(7),
            "0.bias": np.array([0.5, -0.5], np.float16),
            "mask": np.array([True, False]),
            "scale": np.float64(0.25),
        }
    )


def stored(weights: Weights) -> bytes:
    out = io.BytesIO()
    size = write_safetensors(weights, out)
    assert size == len(out.getvalue()) == stored_size(weights.layout)
    return out.getvalue()


def raw_file(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def read(tmp_path: Path, data: bytes) -> Weights:
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    return read_safetensors(path)


def test_floats_stand_in_layout_order_and_the_rest_beside_them() -> None:
    weights = model()
    assert weights.vector.tolist() == [0, 1, 2, 3, 4, 5, 0.5, -0.5, 0.25]
    assert list(weights.arrays()) == ["0.weight", "steps", "0.bias", "mask", "scale"]
    assert weights.layout.size == 9
    assert weights.layout.offsets["0.bias"] == slice(6, 8)
    assert weights.arrays()["0.weight"].base is not None
    assert np.shares_memory(weights.arrays()["0.weight"], weights.vector)
    assert [spec.dtype for spec in weights.layout.tensors] == ["F32", "I64", "F16", "BOOL", "F64"]


def test_from_arrays_copies_its_input() -> None:
    source = np.zeros(3, np.float32)
    weights = Weights.from_arrays({"w": source})
    weights.vector[:] = 1
    assert source.tolist() == [0, 0, 0]


def test_the_vector_is_one_byte_range_of_the_stored_file() -> None:
    weights = model()
    data = stored(weights)
    layout, offset = read_layout(io.BytesIO(data))
    assert layout == weights.layout
    assert layout.hash == weights.layout.hash
    assert offset == len(encode_header(layout))
    assert offset % 8 == 0
    end = offset + 4 * layout.size
    assert data[offset:end] == weights.vector.tobytes()
    assert data[end:] == encode_others(weights)


def test_a_stored_file_comes_back_as_it_was(tmp_path: Path) -> None:
    weights = model()
    found = read(tmp_path, stored(weights))
    assert found.layout == weights.layout
    assert found.vector.tobytes() == weights.vector.tobytes()
    assert found.others["steps"] == 7
    assert found.others["mask"].tolist() == [True, False]


@pytest.mark.parametrize(
    "other",
    [
        (TensorSpec("b", (2,)), TensorSpec("a", (2,))),
        (TensorSpec("a", (2,)), TensorSpec("b", (1, 2))),
        (TensorSpec("a", (2,), "F16"), TensorSpec("b", (2,))),
        (TensorSpec("a", (2,)),),
    ],
)
def test_the_hash_tells_names_order_shapes_and_types_apart(other: tuple[TensorSpec, ...]) -> None:
    assert Layout((TensorSpec("a", (2,)), TensorSpec("b", (2,)))).hash != Layout(other).hash


def test_a_type_without_a_place_is_named() -> None:
    with pytest.raises(ConfigError, match="'z': type complex64"):
        Weights.from_arrays({"z": np.zeros(2, np.complex64)})


def test_a_double_beyond_float32_is_refused_and_infinity_is_kept() -> None:
    with pytest.raises(Corrupt, match="'w' leaves float32's range"):
        Weights.from_arrays({"w": np.array([1e300])})
    assert np.isinf(Weights.from_arrays({"w": np.array([np.inf])}).vector[0])


def test_bf16_is_declared_by_the_caller() -> None:
    weights = Weights.from_arrays({"w": np.ones(2, np.float32)}, {"w": "BF16"})
    assert read_layout(io.BytesIO(stored(weights)))[0].tensors[0].dtype == "BF16"


def test_weights_that_do_not_fit_their_layout_are_refused() -> None:
    layout = Layout((TensorSpec("w", (2,)), TensorSpec("n", (), "I64")))
    steps = {"n": np.array(1)}
    good = np.zeros(2, np.float32)
    Weights(layout, good, steps)
    for vector in (np.zeros(3, np.float32), np.zeros(2), np.zeros((1, 2), np.float32)):
        with pytest.raises(Corrupt):
            Weights(layout, vector, steps)
    for others in ({}, {"n": np.array([1])}, {"n": np.array(1, np.int32)}, {"m": np.array(1)}):
        with pytest.raises(Corrupt):
            Weights(layout, good, others)


def entry(dtype: str = "F32", shape: object = (1,), offsets: object = (0, 4)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


FOUR = b"\0" * 4
DAMAGED = {
    "empty": b"",
    "short length": b"\1\0\0",
    "no header": struct.pack("<Q", 100),
    "header bomb": struct.pack("<Q", 1 << 40) + b"{}",
    "header of nothing": struct.pack("<Q", 0),
    "not JSON": raw_file(b"{nope"),
    "not UTF-8": raw_file(b'{"\xff": 1}'),
    "nested to death": raw_file(b"[" * 200_000),
    "a number of 5000 digits": raw_file(b'{"w": ' + b"1" * 5000 + b"}"),
    "a list": raw_file([]),
    "a key twice": raw_file(
        b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        FOUR,
    ),
    "entry not a map": raw_file({"w": 3}),
    "entry lacks a field": raw_file({"w": {"dtype": "F32", "shape": [1]}}, FOUR),
    "entry has one more": raw_file({"w": {**entry(), "x": 1}}, FOUR),
    "type unknown": raw_file({"w": entry("F8_E4M3", (4,))}, FOUR),
    "type not text": raw_file({"w": {**entry(), "dtype": 3}}, FOUR),
    "shape not a list": raw_file({"w": entry(shape=4)}, FOUR),
    "shape with a bool": raw_file({"w": entry(shape=[True])}, FOUR),
    "shape with a fraction": raw_file({"w": entry(shape=[1.0])}, FOUR),
    "negative shape": raw_file({"w": entry(shape=[-1, -1])}, FOUR),
    "shape bomb": raw_file({"w": entry(shape=[1 << 40, 1 << 40], offsets=[0, 1 << 82])}, FOUR),
    "too many dimensions": raw_file({"w": entry(shape=[1] * 33)}, FOUR),
    "shape against bytes": raw_file({"w": entry(shape=[2])}, FOUR),
    "offsets reversed": raw_file({"w": entry(offsets=[4, 0])}, FOUR),
    "three offsets": raw_file({"w": entry(offsets=[0, 4, 4])}, FOUR),
    "hole": raw_file({"w": entry(offsets=[4, 8])}, FOUR * 2),
    "overlap": raw_file({"v": entry(), "w": entry()}, FOUR),
    "truncated": raw_file({"w": entry()}, FOUR[:3]),
    "trailing bytes": raw_file({"w": entry()}, FOUR + b"x"),
    "no name": raw_file({"": entry()}, FOUR),
    "endless name": raw_file({"w" * 513: entry()}, FOUR),
    "half a character": raw_file(b'{"\\ud800":' + json.dumps(entry()).encode() + b"}", FOUR),
    "metadata not a map": raw_file({"__metadata__": 3, "w": entry()}, FOUR),
    "metadata not text": raw_file({"__metadata__": {"a": 1}, "w": entry()}, FOUR),
    "dtypes not JSON": raw_file({"__metadata__": {"rengo.dtypes": "{"}, "w": entry()}, FOUR),
    "dtype of another kind": raw_file(
        {"__metadata__": {"rengo.dtypes": '{"w":"I64"}'}, "w": entry()}, FOUR
    ),
    "dtype not text": raw_file(
        {"__metadata__": {"rengo.dtypes": '{"w":["F16"]}'}, "w": entry()}, FOUR
    ),
    "a boolean of 2": raw_file({"w": entry("BOOL", (1,), (0, 1))}, b"\2"),
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(Corrupt, match=r"model\.safetensors: "):
        read(tmp_path, data)


def test_a_foreign_file_opens_but_is_not_in_the_stored_form(tmp_path: Path) -> None:
    half = np.array([1.5, 2.5], "<f2").tobytes()
    data = raw_file({"w": entry("F16", (2,), (0, 4))}, half)
    assert read(tmp_path, data).vector.tolist() == [1.5, 2.5]
    with pytest.raises(Corrupt, match="not where the stored form has it"):
        read_layout(io.BytesIO(data))


def test_an_empty_tensor_and_an_empty_model_are_kept(tmp_path: Path) -> None:
    weights = Weights.from_arrays({"none": np.zeros((0, 3), np.float32), "w": np.ones(1, "f4")})
    assert read(tmp_path, stored(weights)).arrays()["none"].shape == (0, 3)
    assert read(tmp_path, stored(Weights.from_arrays({}))).layout.size == 0
