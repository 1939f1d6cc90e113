"""Exported files against the safetensors library and torch, which are the oracle."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rengo.export.formats import save_safetensors
from rengo.export.torch import save_state_dict
from rengo.operator.layout_match import fit
from storage.weights import Weights, read_safetensors, write_safetensors

TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I16": torch.int16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
FLOATS = [name for name in TYPES if "F" in name]
names = st.text("abc.0", min_size=1, max_size=8)
shapes = st.lists(st.integers(0, 3), max_size=3)


@st.composite
def tensors(draw: st.DrawFn, types: list[str]) -> torch.Tensor:
    dtype, shape = TYPES[draw(st.sampled_from(types))], draw(shapes)
    count = int(np.prod(shape))
    if dtype.is_floating_point:
        width = {torch.float16: 16, torch.bfloat16: 32}.get(dtype, 32)
        value: st.SearchStrategy[Any] = st.floats(-6e4, 6e4, width=width)
    else:
        value = st.booleans() if dtype == torch.bool else st.integers(0, 100)
    values = draw(st.lists(value, min_size=count, max_size=count))
    return torch.tensor(values, dtype=dtype).reshape(shape)


models = st.dictionaries(names, tensors(list(TYPES)), max_size=6)


def foreign(folder: Path, model: dict[str, torch.Tensor]) -> Path:
    path = folder / "foreign.safetensors"
    path.write_bytes(safetensors.torch.save(model))
    return path


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert torch.equal(found[name], tensor), name


@settings(deadline=None)
@given(model=models)
def test_a_model_goes_through_the_stored_form_and_comes_out_in_its_own_types(
    model: dict[str, torch.Tensor],
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = read_safetensors(foreign(folder, model))
        with (folder / "stored").open("wb") as file:
            write_safetensors(weights, file)
        stored = read_safetensors(folder / "stored")
        save_safetensors(stored, folder / "own.safetensors")
        save_state_dict(stored, folder / "own.pt")
        same(safetensors.torch.load_file(folder / "own.safetensors"), model)
        same(torch.load(folder / "own.pt", weights_only=True), model)
        assert read_safetensors(folder / "own.safetensors").layout == stored.layout
        assert sorted(path.name for path in folder.iterdir()) == [
            *("foreign.safetensors", "own.pt", "own.safetensors", "stored")
        ]


@settings(deadline=None)
@given(values=st.lists(st.floats(-(2.0**127), 2.0**127, width=32), max_size=20))
def test_bfloat16_is_rounded_as_torch_rounds(values: list[float]) -> None:
    wanted = torch.tensor(values, dtype=torch.float32).bfloat16()
    weights = Weights.from_arrays({"w": np.array(values, np.float32)}, {"w": "BF16"})
    with tempfile.TemporaryDirectory() as name:
        save_safetensors(weights, Path(name) / "own")
        assert torch.equal(safetensors.torch.load_file(Path(name) / "own")["w"], wanted)


@settings(deadline=None)
@given(
    model=st.dictionaries(names, tensors(FLOATS), min_size=1, max_size=6),
    order=st.randoms(),
    types=st.data(),
)
def test_any_order_and_any_float_type_fits_the_model(
    model: dict[str, torch.Tensor], order: Any, types: st.DataObject
) -> None:
    shuffled = list(model)
    order.shuffle(shuffled)
    given_ = {name: model[name].to(TYPES[types.draw(st.sampled_from(FLOATS))]) for name in shuffled}
    layout = Weights.from_arrays(
        {name: tensor.float().numpy() for name, tensor in model.items()}
    ).layout
    with tempfile.TemporaryDirectory() as name:
        found = fit(read_safetensors(foreign(Path(name), given_)), layout, "it", "the model")
    assert found.layout == layout
    for name, array in found.arrays().items():
        assert np.array_equal(array, given_[name].float().numpy()), name


def test_the_widest_come_first_so_that_all_are_aligned() -> None:
    weights = Weights.from_arrays({"h": np.ones(3, np.float16), "w": np.ones(2, np.float32)})
    with tempfile.TemporaryDirectory() as name:
        save_safetensors(weights, Path(name) / "own")
        raw = (Path(name) / "own").read_bytes()
    assert b'"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}' in raw
    assert list(safetensors.numpy.load(raw)["h"]) == [1, 1, 1]
