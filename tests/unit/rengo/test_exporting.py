"""What cannot be exported says so and leaves nothing; ONNX is held against torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.torch
import torch

from fl_client.datasets.device import Device
from fl_client.models.layers import (
    GRU,
    LSTM,
    Conv2d,
    Embedding,
    Flatten,
    Layers,
    Linear,
    MaxPool2d,
    ReLU,
    Reshape,
    Sigmoid,
    Tanh,
    Transpose,
)
from fl_client.tasks.base import Task
from fl_client.tasks.registry import load_task
from fl_client.tasks.split import Split
from rengo.export import torch as torch_export
from rengo.export.formats import export, save_safetensors
from rengo.export.input_shape import example_shape
from rengo.export.onnx_check import OnnxCheck
from rengo.operator.models import FetchedVersion
from runtime.errors import ConfigError, Mismatch, MissingExtra, RunNotCompleted
from storage.weights import Weights

CLOSE = 1e-5


class Net(torch.nn.Module):
    """Two inputs, one of which is only an option, half precision, a counter, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(50, 8)
        self.norm = torch.nn.BatchNorm1d(8)
        self.last = torch.nn.Linear(8, 2).half()

    def forward(
        self, tokens: torch.Tensor, mask: torch.Tensor | None = None, *, scale: float = 1.0
    ) -> dict[str, torch.Tensor]:
        x = self.embedding(tokens)
        if mask is not None:
            x = x * mask[..., None]
        x = self.norm(x.mean(1)) * scale
        return {"logits": self.last(x.to(self.last.weight.dtype)), "hidden": x}


class Sentences(torch.utils.data.Dataset[dict[str, Any]]):
    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"tokens": torch.arange(7) + index, "mask": torch.ones(7), "label": index % 2}


class Words(Task):
    """A task whose predict() calls the model in its own way."""

    def model(self) -> torch.nn.Module:
        return Net()

    def data(self, device: Device) -> tuple[Split, Split]:
        return (Sentences(), None) if device.role == "trainer" else (None, None)

    def predict(self, model: torch.nn.Module, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return model(batch["tokens"], mask=batch["mask"], scale=2.0)["logits"], batch["label"]


class Points(Task):
    """Four numbers in, two out; the model is to be given."""

    def data(self, device: Device) -> tuple[Split, Split]:
        return None, (np.ones((5, 4), np.float32), np.zeros(5, np.int64))


class OfThree(torch.nn.Linear):
    """Does something else for three examples, so its batch axis is not free."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        return y if x.shape[0] == 3 else y * 2


class Noisy(torch.nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + torch.rand(x.shape[0], 2)


class NotANumber(torch.nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * float("nan")


class Undecided(torch.nn.Linear):
    """Its way depends on the numbers, which no graph can hold."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * (2 if float(x.sum()) > 0 else 1)


def task_of(model: Callable[[], torch.nn.Module]) -> Task:
    kind = type("Made", (Points,), {"model": lambda _: model()})
    found: Task = kind()
    return found


def onnx_of(task: Task, path: Path) -> tuple[OnnxCheck, Weights]:
    weights = task.initial_weights(3)
    check = export(FetchedVersion("it", weights), "onnx", path, task)
    assert check is not None
    return check, weights


def run_onnx(path: Path, **inputs: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run(None, inputs)
    return found


# --- ONNX -------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 100])
def test_digits_on_onnxruntime_are_digits_on_numpy(count: int, tmp_path: Path) -> None:
    check, weights = onnx_of(load_task("digits"), tmp_path / "digits.onnx")
    assert check.difference <= CLOSE
    assert check.data == "examples of task digits"
    x = np.random.default_rng(0).random((count, 64), np.float32)
    w = weights.arrays()
    hidden = np.maximum(x @ w["0.weight"].T + w["0.bias"], 0)
    (found,) = run_onnx(tmp_path / "digits.onnx", input=x)
    assert np.abs(found - (hidden @ w["2.weight"].T + w["2.bias"])).max() <= CLOSE
    onnx.checker.check_model(tmp_path / "digits.onnx", full_check=True)
    assert [path.name for path in tmp_path.iterdir()] == ["digits.onnx"]


@pytest.mark.parametrize(
    "layers",
    [
        [Reshape((1, 8, 8)), Conv2d(1, 4, 3, padding=1), ReLU(), MaxPool2d(2), Flatten(), Tanh()],
        [Conv2d(3, 4, 3, 2), Tanh(), MaxPool2d(2), Flatten(), Linear(4 * 7 * 7, 10), Sigmoid()],
    ],
)
def test_every_layer_goes_over_also_without_data(layers: Layers, tmp_path: Path) -> None:
    def no_sensor(_: Task, device: Device) -> tuple[Split, Split]:
        raise OSError("no sensor here")

    task = type("Layered", (Task,), {"model": lambda _: layers, "data": no_sensor})()
    check, _ = onnx_of(task, tmp_path / "m.onnx")
    assert check.difference <= CLOSE
    assert check.data == "random inputs"


def test_a_module_that_is_called_in_its_own_way(tmp_path: Path) -> None:
    check, _ = onnx_of(Words(), tmp_path / "words.onnx")
    assert check.difference <= CLOSE
    assert [each.split()[0] for each in check.inputs] == ["tokens", "mask"]
    found = run_onnx(
        tmp_path / "words.onnx",
        tokens=np.ones((9, 7), np.int64),
        mask=np.ones((9, 7), np.float32),
    )
    assert [each.shape for each in found] == [(9, 2), (9, 8)]


@pytest.mark.parametrize(
    ("module", "error", "says"),
    [
        (OfThree, RunNotCompleted, "onnxruntime does not run the exported model"),
        (Noisy, RunNotCompleted, "onnxruntime differs from torch by"),
        (NotANumber, RunNotCompleted, "onnxruntime differs from torch by nan"),
        (Undecided, ConfigError, "cannot be exported to ONNX"),
    ],
)
def test_what_is_not_the_model_leaves_no_file(
    module: type[torch.nn.Linear], error: type[Exception], says: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=says):
        onnx_of(task_of(lambda: module(4, 2)), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_difference_beyond_the_limit_leaves_what_was_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "m.onnx").write_text("before")
    monkeypatch.setattr(torch_export, "LARGEST_DIFFERENCE", -1.0)
    with pytest.raises(RunNotCompleted, match="is not the model"):
        onnx_of(task_of(lambda: torch.nn.Linear(4, 2)), tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_text() == "before"


def test_a_model_beyond_one_file_of_protobuf_has_its_weights_in_a_second(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch_export, "_ONE_FILE_BYTES", 1000)
    onnx_of(load_task("digits"), tmp_path / "m.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    assert len(run_onnx(tmp_path / "m.onnx", input=np.zeros((2, 64), np.float32))[0]) == 2


def test_onnx_needs_the_task(tmp_path: Path) -> None:
    held = FetchedVersion("it", load_task("digits").initial_weights(0))
    with pytest.raises(ConfigError, match="name the task by --task"):
        export(held, "onnx", tmp_path / "m.onnx")


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(MissingExtra, match=r"onnxscript .* pip install 'rengo\[export\]'"):
        onnx_of(load_task("digits"), tmp_path / "m.onnx")


# --- the other formats ------------------------------------------------------------------------


def test_a_state_dict_loads_strictly_into_the_module(tmp_path: Path) -> None:
    task = Words()
    weights = task.initial_weights(3)
    export(FetchedVersion("it", weights), "torch", tmp_path / "m.pt")
    loaded = torch.load(tmp_path / "m.pt", weights_only=True)
    module = Net()
    module.load_state_dict(loaded, strict=True)
    assert {name: tensor.dtype for name, tensor in loaded.items()} == {
        name: tensor.dtype for name, tensor in Net().state_dict().items()
    }
    for name, array in weights.arrays().items():
        assert np.array_equal(module.state_dict()[name].float().numpy(), array), name


def test_the_types_come_from_the_task_where_it_is_named(tmp_path: Path) -> None:
    task = Words()
    wide = {name: array.copy() for name, array in task.initial_weights(0).arrays().items()}
    export(FetchedVersion("it", Weights.from_arrays(wide)), "safetensors", tmp_path / "m", task)
    found = safetensors.torch.load_file(tmp_path / "m")
    assert found["last.weight"].dtype == torch.float16
    assert found["norm.weight"].dtype == torch.float32


def test_what_is_not_the_task_s_model_says_what_is_wrong(tmp_path: Path) -> None:
    held = FetchedVersion(
        "mine.safetensors", Weights.from_arrays({"0.weight": np.zeros((32, 64), "f4")})
    )
    with pytest.raises(Mismatch, match=r"(?s)mine.safetensors does not fit.*missing +0\.bias"):
        export(held, "torch", tmp_path / "m.pt", load_task("digits"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("dtype", "value"), [("F16", 70_000.0), ("BF16", 3.4e38)])
def test_a_value_beyond_its_own_type_is_told(dtype: str, value: float, tmp_path: Path) -> None:
    weights = Weights.from_arrays({"w": np.array([value], np.float32)}, {"w": dtype})
    with pytest.raises(ConfigError, match=f"a value of 'w' does not fit its type {dtype}"):
        save_safetensors(weights, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F64"])
def test_infinity_and_nan_stay_what_they_are(dtype: str, tmp_path: Path) -> None:
    values = np.array([np.inf, -np.inf, np.nan, -0.0], np.float32)
    # the bits of a NaN whose upper half alone would be infinity
    values = np.append(values, np.array([0x7F800001], np.uint32).view(np.float32))
    save_safetensors(Weights.from_arrays({"w": values}, {"w": dtype}), tmp_path / "m")
    found = safetensors.torch.load_file(tmp_path / "m")["w"].float().numpy()
    assert np.array_equal(found, values, equal_nan=True)


# --- what an example looks like ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ([Linear(64, 3)], (64,)),
        ([Flatten(), ReLU(), Linear(5, 3)], (5,)),
        ([Reshape((2, 4, 4)), Conv2d(2, 1, 3)], (32,)),
        ([Conv2d(3, 4, 3), MaxPool2d(2), Flatten(), Linear(4 * 15 * 15, 10)], (3, 32, 32)),
        ([Conv2d(1, 1, 3), Flatten(), Linear(7, 1)], None),
        ([Conv2d(1, 2, 3), Conv2d(3, 1, 3)], None),
        ([ReLU()], None),
        ([Embedding(96, 8), LSTM(8, 4), Linear(4, 96)], None),
        ([Transpose(), GRU(6, 4), Linear(4, 2)], None),
    ],
)
def test_the_shape_of_an_example(layers: Layers, shape: tuple[int, ...] | None) -> None:
    assert example_shape(layers) == shape
