from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from runtime.errors import Corrupt
from storage.weights import Weights, read_layout, read_safetensors, write_safetensors

DTYPES = ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?"]
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
    lambda name: name != "__metadata__"
)


def elements(dtype: np.dtype[Any]) -> st.SearchStrategy[Any] | None:
    # doubles within float32's range: beyond it they are refused, which has its own test
    return st.floats(-1e30, 1e30) if dtype == np.float64 else None


tensors = st.sampled_from(DTYPES).flatmap(
    lambda code: arrays(
        np.dtype(code),
        array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
        elements=elements(np.dtype(code)),
    )
)
models = st.dictionaries(names, tensors, max_size=6)


def stored(weights: Weights) -> bytes:
    out = io.BytesIO()
    write_safetensors(weights, out)
    return out.getvalue()


def read(data: bytes) -> Weights:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "w.safetensors")
        path.write_bytes(data)
        return read_safetensors(path)


def same(found: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> bool:
    if wanted.dtype.kind == "f":
        wanted = wanted.astype(np.float32)
    return (
        found.dtype == wanted.dtype
        and found.shape == wanted.shape
        and np.array_equal(found, wanted, equal_nan=wanted.dtype.kind == "f")
    )


@settings(deadline=None)
@given(model=models)
def test_a_model_comes_back_in_order_with_its_types(model: dict[str, np.ndarray[Any, Any]]) -> None:
    weights = Weights.from_arrays(model)
    found = read(stored(weights))
    assert found.layout == weights.layout
    assert found.layout.hash == weights.layout.hash
    assert stored(found) == stored(weights)
    assert list(found.arrays()) == list(model)
    assert all(same(found.arrays()[name], array) for name, array in model.items())


@settings(deadline=None)
@given(model=models)
def test_the_safetensors_library_reads_what_we_write(
    model: dict[str, np.ndarray[Any, Any]],
) -> None:
    found = safetensors.numpy.load(stored(Weights.from_arrays(model)))
    assert set(found) == set(model)
    assert all(same(found[name], array) for name, array in model.items())


@settings(deadline=None)
@given(model=models)
def test_we_read_what_the_safetensors_library_writes(
    model: dict[str, np.ndarray[Any, Any]],
) -> None:
    # the library writes the memory as it lies
    whole = {name: np.array(array, order="C") for name, array in model.items()}
    found = read(safetensors.numpy.save(whole)).arrays()
    assert set(found) == set(model)
    assert all(same(found[name], array) for name, array in model.items())


@settings(deadline=None)
@given(
    rows=st.lists(st.floats(-(2.0**99), 2.0**99, width=32), max_size=20),
    steps=st.integers(-(1 << 60), 1 << 60),
)
def test_torch_models_with_bf16_and_counters_go_both_ways(rows: list[float], steps: int) -> None:
    model = {
        "w": torch.tensor(rows, dtype=torch.float32),
        "half": torch.tensor(rows, dtype=torch.bfloat16),
        "steps": torch.tensor(steps),
    }
    weights = read(safetensors.torch.save(model))
    assert {spec.name: spec.dtype for spec in weights.layout.tensors} == {
        "w": "F32",
        "half": "BF16",
        "steps": "I64",
    }
    back = safetensors.torch.load(stored(weights))
    assert torch.equal(back["w"], model["w"])
    assert torch.equal(back["half"], model["half"].float())
    assert back["steps"].item() == steps


@settings(deadline=None)
@given(model=models, choice=st.data())
def test_damage_is_corrupt_or_a_model_that_the_library_reads_too(
    model: dict[str, np.ndarray[Any, Any]], choice: st.DataObject
) -> None:
    data = stored(Weights.from_arrays(model))
    position = choice.draw(st.integers(0, len(data) - 1))
    length = choice.draw(st.integers(0, min(8, len(data) - position)))
    instead = choice.draw(st.binary(max_size=8))
    damaged = data[:position] + instead + data[position + length :]
    assume(damaged != data)
    try:
        found = read(damaged)
    except Corrupt:
        return
    theirs = safetensors.numpy.load(damaged)
    assert set(theirs) == {spec.name for spec in found.layout.tensors}


@settings(deadline=None)
@given(data=st.binary(max_size=300))
def test_any_bytes_are_corrupt_or_a_layout(data: bytes) -> None:
    try:
        read_layout(io.BytesIO(data))
    except Corrupt:
        return
    assert len(data) >= 10
