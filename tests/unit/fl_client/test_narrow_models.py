"""A part of a model is a model: it computes what the whole one does whose other weights are 0."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import algorithms
from algorithms._widths import axes_of
from algorithms.base import Algorithm
from fl_client.engines.base import load_engine
from fl_client.models.layers import (
    GRU,
    LSTM,
    BatchNorm,
    Conv1d,
    Conv2d,
    Embedding,
    Flatten,
    GlobalAvgPool,
    LayerNorm,
    Layers,
    Linear,
    MaxPool2d,
    ReLU,
    Reshape,
    Tanh,
    Transpose,
    initial_weights,
    tensors,
)
from fl_client.models.narrowing import narrowed
from fl_client.tasks.base import Task
from fl_client.tasks.narrow import narrow_task
from fl_client.training.algorithm_match import require_match
from runtime.errors import ConfigError
from storage.weights import Axis, Layout, Slices, TensorSpec, Weights

Array = np.ndarray[Any, Any]
SETTINGS = {"widths": {"pi": 0.3}}
HETEROFL = algorithms.load("heterofl", SETTINGS)
FEDROLEX = algorithms.load("fedrolex", SETTINGS)


def random(*shape: int) -> Array:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


MODELS: dict[str, tuple[Layers, Array]] = {
    "perceptron": ([Flatten(), Linear(6, 8), Tanh(), Linear(8, 7), Linear(7, 3)], random(9, 2, 3)),
    "images": (
        [
            Reshape((1, 8, 8)),
            Conv2d(1, 6, 3, padding=1),
            BatchNorm(6),
            ReLU(),
            MaxPool2d(2),
            Conv2d(6, 5, 3),
            ReLU(),
            Flatten(),
            Linear(5 * 4, 9),
            ReLU(),
            Linear(9, 3),
        ],
        random(9, 64),
    ),
    "waves": (
        [Conv1d(2, 6, 3), ReLU(), Transpose(), GRU(6, 5), Linear(5, 3)],
        random(9, 2, 12),
    ),
    "adapted": ([Linear(6, 8, rank=2), Tanh(), Linear(8, 3, rank=1)], random(9, 6)),
    "pooled": ([Conv1d(2, 6, 3), BatchNorm(6), GlobalAvgPool(), Linear(6, 3)], random(9, 2, 12)),
    "text": (
        [Embedding(20, 8), LSTM(8, 7, sequence=True), LSTM(7, 6), Linear(6, 3)],
        np.arange(36).reshape(9, 4) % 20,
    ),
}


class Classes(Task):
    """Three classes of the inputs of a model."""

    def __init__(self, layers: Layers) -> None:
        self.layers = layers

    def model(self) -> Layers:
        return self.layers


def part_of(algorithm: Algorithm, layout: Layout, round_number: int = 1) -> Slices:
    found = algorithm.part(0.3, round_number, layout)
    assert found is not None
    return found


@pytest.mark.parametrize("engine", ["numpy", "torch"])
@pytest.mark.parametrize("algorithm", [HETEROFL, FEDROLEX], ids=["heterofl", "fedrolex"])
@pytest.mark.parametrize("name", MODELS)
def test_its_gradient_is_that_of_the_whole_with_zeros(
    name: str, algorithm: Algorithm, engine: str
) -> None:
    layers, inputs = MODELS[name]
    weights, data = initial_weights(layers, 1), (inputs, np.arange(9) % 3)
    slices = part_of(algorithm, weights.layout, 5)
    small = Weights(slices.part, slices.take(weights.vector), weights.others)
    assert small.vector.size < weights.vector.size / 2
    zeros = np.zeros_like(weights.vector)
    slices.put(small.vector, zeros)
    shapes = {spec.name: spec.shape for spec in slices.part.tensors}
    task = narrow_task(Classes(layers), 0.3, shapes)
    loss, found = load_engine(engine, task, dtype="float64").gradients(small, data)
    whole = load_engine(engine, Classes(layers), dtype="float64")
    wanted, expected = whole.gradients(weights.with_vector(zeros), data)
    assert loss == pytest.approx(wanted, rel=1e-9)
    flat = np.concatenate(
        [
            expected.get(spec.name, np.zeros(spec.shape)).reshape(-1)
            for spec in weights.layout.floats
        ]
    )
    for spec in slices.part.floats:
        if spec.name in found:
            own = slices.take(flat)[slices.part.offsets[spec.name]]
            np.testing.assert_allclose(found[spec.name].reshape(-1), own, atol=1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_models_match_when_a_run_is_submitted(name: str) -> None:
    require_match(Classes(MODELS[name][0]), "heterofl", HETEROFL)


def test_the_axes_of_layers() -> None:
    axes = axes_of(initial_weights(MODELS["images"][0], 0).layout)
    assert axes["1.weight"] == (Axis(6), None, None, None)
    assert axes["2.running_var"] == (Axis(6),)
    assert axes["5.weight"] == (Axis(5), Axis(6), None, None)
    assert axes["8.weight"] == (Axis(9), Axis(5, 4))
    assert axes["10.weight"] == (None, Axis(9))
    assert axes["10.bias"] == (None,)
    axes = axes_of(initial_weights(MODELS["text"][0], 0).layout)
    assert axes["0.weight"] == (None, Axis(8))
    assert axes["1.weight_ih_l0"] == (Axis(7, 1, 4), Axis(8))
    assert axes["1.weight_hh_l0"] == (Axis(7, 1, 4), Axis(7))
    assert axes["2.bias_hh_l0"] == (Axis(6, 1, 4),)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ([Linear(4, 3)], "has no hidden layer"),
        ([Linear(4, 6), Reshape((6, 1)), Conv1d(6, 2, 1), Flatten(), Linear(2, 3)], "Reshape"),
        ([Conv1d(2, 6, 1), LayerNorm((6, 5)), Flatten(), Linear(30, 3)], "cannot be divided"),
        ([Linear(4, 6), GRU(6, 5)], "the last layer is a recurrent one"),
        ([Embedding(8, 8), LSTM(8, 7), Linear(7, 3)], "of its 8 inputs are left"),
    ],
)
def test_parts_that_fit_no_layer_are_refused(layers: Layers, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        require_match(Classes(layers), "heterofl", HETEROFL)
    assert "algorithm heterofl has devices train 0.3 of each layer" in str(error.value)
    require_match(Classes(layers), "heterofl", algorithms.load("heterofl"))


def test_layers_whose_units_are_not_those_of_the_layer_before_are_refused() -> None:
    layout = Layout((TensorSpec("0.weight", (6, 4)), TensorSpec("1.weight", (3, 7))))
    with pytest.raises(ConfigError, match=r"1\.weight takes 7 inputs, and the layer before has 6"):
        axes_of(layout)
    layout = Layout(
        (TensorSpec("a.in", (6, 4)), TensorSpec("a.out", (5, 4)), TensorSpec("b", (2, 6)))
    )
    with pytest.raises(ConfigError, match="have no outputs in common"):
        axes_of(layout)


def test_a_residual_network_s_layers_of_one_size_have_the_same_units() -> None:
    convolution = (("conv1", 8, 3), ("a.conv1", 8, 8), ("a.conv2", 8, 8), ("b.conv1", 16, 8))
    convolution += (("b.conv2", 16, 16), ("b.downsample", 16, 8))
    specs = [TensorSpec(f"{name}.weight", (out, into, 3, 3)) for name, out, into in convolution]
    axes = axes_of(Layout((*specs, TensorSpec("fc.weight", (10, 16)))))
    assert axes["b.downsample.weight"] == (Axis(16), Axis(8), None, None)
    assert axes["fc.weight"] == (None, Axis(16))


# --- torch modules ------------------------------------------------------------------------------


class Module(Task):
    def model(self) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(4, 10), torch.nn.ReLU(), torch.nn.Linear(10, 3))


class Narrowable(Module):
    def model_at(self, width: float) -> torch.nn.Module:
        units = -int(-10 * width // 1)
        return torch.nn.Sequential(
            torch.nn.Linear(4, units), torch.nn.ReLU(), torch.nn.Linear(units, 3)
        )


class Wrong(Module):
    def model_at(self, width: float) -> torch.nn.Module:
        del width
        return torch.nn.Sequential(torch.nn.Linear(4, 9), torch.nn.ReLU(), torch.nn.Linear(9, 3))


class Broken(Module):
    def model_at(self, width: float) -> torch.nn.Module:
        raise ValueError(f"no {width}")


class OwnUpdate(Narrowable):
    def local_update(self, weights: Any, context: Any) -> Any:
        return weights, 1, {}


def test_a_torch_module_is_narrowed_by_its_task() -> None:
    require_match(Narrowable(), "heterofl", HETEROFL)
    weights = Narrowable().initial_weights(0)
    slices = part_of(HETEROFL, weights.layout)
    small = Weights(slices.part, slices.take(weights.vector), {})
    task = narrow_task(Narrowable(), 0.3, {})
    _, found = load_engine("torch", task).gradients(small, (random(9, 4), np.arange(9) % 3))
    assert {name: array.shape for name, array in found.items()} == {
        "0.weight": (3, 4),
        "0.bias": (3,),
        "2.weight": (3, 3),
        "2.bias": (3,),
    }


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (Module(), r"has a torch module for a model.*model_at\(width\)"),
        (Wrong(), r"model_at\(0\.3\) has '0\.bias' of shape \(9,\), and the part has \(3,\)"),
        (Broken(), r"model_at\(\) raised ValueError: no 0\.3 \(.*test_narrow_models\.py:"),
        (OwnUpdate(), "overrides local_update"),
    ],
    ids=["none", "other sizes", "raises", "own training"],
)
def test_a_torch_module_that_cannot_be_narrowed_is_refused(task: Task, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        require_match(task, "heterofl", HETEROFL)


def test_shapes_that_are_no_narrower_model_are_refused() -> None:
    layers = [Linear(4, 6), Tanh(), Linear(6, 3)]
    shapes = {name: tensor.shape for name, tensor in tensors(layers).items()}
    assert narrowed(layers, shapes) == layers
    for change, said in (
        ({"0.weight": (5, 4)}, r"0\.bias of shape \(6,\) fits no layer"),
        ({"0.weight": (5, 4), "0.bias": (5,)}, "6 of its 6 inputs are left"),
        ({"0.weight": (6, 3)}, "3 of its 4 inputs are left"),
        ({"2.weight": (2, 6), "2.bias": (2,)}, "2 of its 3 outputs left"),
        ({"4.weight": (2, 6)}, "their names differ"),
    ):
        with pytest.raises(ConfigError, match=said):
            narrowed(layers, {**shapes, **change})
