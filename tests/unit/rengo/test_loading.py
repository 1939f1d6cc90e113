"""A model file as arrays and as torch tensors, by the public names alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import rengo
from runtime.errors import ConfigError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Written by the library of the format, not by ours."""
    path = tmp_path / "model.safetensors"
    tensors = {
        "0.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "0.bias": torch.tensor([0.5, -0.25], dtype=torch.bfloat16),
        "1.num_batches_tracked": torch.tensor(7),
        "mask": torch.tensor([True, False]),
    }
    safetensors.torch.save_file(tensors, path)
    return path


def test_arrays_have_the_names_shapes_and_values_of_the_file(file: Path) -> None:
    arrays = rengo.load_model(file)
    assert set(arrays) == {"0.weight", "0.bias", "1.num_batches_tracked", "mask"}
    assert arrays["0.weight"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert arrays["0.bias"].dtype == np.float32
    assert arrays["0.bias"].tolist() == [0.5, -0.25]
    assert (arrays["1.num_batches_tracked"].shape, int(arrays["1.num_batches_tracked"])) == ((), 7)
    assert arrays["mask"].tolist() == [True, False]


def test_arrays_are_the_callers_own(file: Path) -> None:
    arrays = rengo.load_model(str(file))
    arrays["0.weight"] += 1
    assert rengo.load_model(str(file))["0.weight"][0, 0] == 0


def test_a_state_dict_has_the_types_of_the_file(file: Path) -> None:
    found = rengo.load_state_dict(file)
    written = safetensors.torch.load_file(file)
    assert {name: tensor.dtype for name, tensor in found.items()} == {
        name: tensor.dtype for name, tensor in written.items()
    }
    assert all(torch.equal(found[name], written[name]) for name in written)


def test_arrays_need_no_torch(file: Path) -> None:
    code = f"import sys; sys.modules['torch'] = None; import rengo; rengo.load_model({str(file)!r})"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_torch_a_state_dict_names_the_extra(file: Path) -> None:
    code = (
        f"import sys; sys.modules['torch'] = None; import rengo; "
        f"rengo.load_state_dict({str(file)!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'rengo[torch]'" in done.stderr


@pytest.mark.parametrize("load", [rengo.load_model, rengo.load_state_dict])
def test_a_file_that_is_not_there_or_no_model_is_named(load: object, tmp_path: Path) -> None:
    assert callable(load)
    with pytest.raises(ConfigError, match=r"nowhere\.safetensors: No such file"):
        load(tmp_path / "nowhere.safetensors")
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"not a model at all")
    with pytest.raises(ConfigError, match=r"other\.safetensors: "):
        load(other)
