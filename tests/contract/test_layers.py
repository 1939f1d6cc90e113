"""Every declarative layer is the same function in numpy and in torch: values and gradients."""

from __future__ import annotations

import math
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_client.engines import base
from fl_client.engines.base import load_engine
from fl_client.models import layers as kinds
from fl_client.models import memory
from fl_client.models.layers import (
    GRU,
    LSTM,
    AvgPool1d,
    AvgPool2d,
    BatchNorm,
    Conv1d,
    Conv2d,
    Dropout,
    Embedding,
    Flatten,
    GlobalAvgPool,
    Layer,
    LayerNorm,
    Layers,
    Linear,
    MaxPool1d,
    MaxPool2d,
    ReLU,
    Reshape,
    Tanh,
    Transpose,
)
from fl_client.tasks.base import Task
from runtime.errors import ConfigError
from storage.weights import Weights
from tests.contract.test_engine_steps import cut_and_go_on
from tests.contract.test_engines import Declarative, plan_of
from tests.updates import change_of

SIDE = st.integers(1, 4)


def made(model: Layers) -> Task:
    kind = type("Made", (Declarative,), {"layers": model, "objective": "mean_squared_error"})
    return kind()  # type: ignore[no-any-return]


@st.composite
def cases(draw: st.DrawFn, kind: type[Layer]) -> tuple[Layer, tuple[int, ...]]:
    """A layer of the kind and the shape of one example that it takes."""
    channels, size = draw(SIDE), draw(st.integers(1, 3))
    length = draw(st.integers(3, 9))
    side = (channels, length, draw(st.integers(3, 7)))
    if kind in (Conv1d, Conv2d):
        made = kind(
            channels,
            draw(SIDE),
            size,
            draw(st.integers(1, 3)),
            draw(st.integers(0, 2)),
            draw(st.booleans()),
        )
        return made, side[: 2 if kind is Conv1d else 3]
    if kind in (MaxPool1d, AvgPool1d):
        return kind(size), side[:2]
    if kind in (MaxPool2d, AvgPool2d):
        return kind(size), side
    if kind in (BatchNorm, GlobalAvgPool):
        shape = side[: draw(st.integers(1 if kind is BatchNorm else 2, 3))]
        return BatchNorm(channels) if kind is BatchNorm else GlobalAvgPool(), shape
    if kind is LayerNorm:
        # three values at least: of one alone the variance is rounding
        return LayerNorm(side[draw(st.integers(0, 1)) :]), side
    if kind in (GRU, LSTM):
        return kind(channels, draw(SIDE), draw(st.booleans())), (length, channels)
    if kind is Embedding:
        return Embedding(channels, draw(SIDE)), (length,)
    if kind is Linear:
        shape = (length, channels) if draw(st.booleans()) else (channels,)
        return Linear(channels, draw(SIDE), draw(st.booleans()), draw(st.integers(0, 2))), shape
    if kind is Reshape:
        return Reshape((1, length, channels)), (channels, length)
    if kind is Dropout:
        return Dropout(draw(st.sampled_from([0.0, 0.3, 0.9]))), side
    return kind(), side[: 2 if kind is Transpose else 3]


def around(layer: Layer, shape: tuple[int, ...]) -> Layers:
    """The layer with one before it, so that the gradient at its input shows, and one behind."""
    if isinstance(layer, Embedding):
        return [layer, Tanh()]
    return [Linear(shape[-1], shape[-1]), layer, Tanh()]


def inputs_of(layer: Layer, shape: tuple[int, ...], seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    if isinstance(layer, Embedding):
        return random.integers(0, layer.count, shape).astype(np.float64)
    return random.standard_normal(shape)


def random_weights(task: Task, seed: int) -> Weights:
    """Weights that are not where layers begin: no scale is 1, no variance either."""
    first = task.initial_weights(seed)
    vector = np.random.default_rng(seed).uniform(0.3, 1.2, first.vector.size)
    return first.with_vector(vector.astype(np.float32))


def both(task: Task, weights: Weights, data: Any) -> None:
    before = weights.vector.tobytes()
    (ours_loss, ours), (theirs_loss, theirs) = (
        load_engine(name, task, dtype="float64").gradients(weights, data) for name in base.names()
    )
    assert ours_loss == pytest.approx(theirs_loss, rel=1e-8, abs=1e-12)
    assert list(ours) == list(theirs)
    scale = max(1e-3, *(np.abs(theirs[name]).max() for name in theirs))
    for name, gradient in ours.items():
        np.testing.assert_allclose(gradient, theirs[name], rtol=1e-8, atol=1e-8 * scale)
    assert weights.vector.tobytes() == before


@pytest.mark.parametrize("kind", get_args(kinds.Layer), ids=lambda kind: kind.__name__)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(data=st.data())
def test_the_gradients_of_every_layer_are_those_of_torch(kind: type[Layer], data: Any) -> None:
    layer, shape = data.draw(cases(kind))
    batch, seed = data.draw(st.integers(1, 5)), data.draw(st.integers(0, 99))
    task = made(around(layer, shape))
    weights = random_weights(task, seed)
    x = inputs_of(layer, (batch, *shape), seed)
    with torch.no_grad():
        module = load_engine("torch", task, dtype="float64").load_module(weights)  # type: ignore[attr-defined]
        y = module.eval()(torch.from_numpy(x)).numpy()
    both(task, weights, (x, np.random.default_rng(seed + 1).standard_normal(y.shape)))


@pytest.mark.parametrize("kind", get_args(kinds.Layer), ids=lambda kind: kind.__name__)
@settings(max_examples=4, deadline=None, derandomize=True)
@given(data=st.data())
def test_so_are_its_values_in_evaluation(kind: type[Layer], data: Any) -> None:
    layer, shape = data.draw(cases(kind))
    task = made(around(layer, shape))
    weights = random_weights(task, 5)
    x = inputs_of(layer, (3, *shape), 6)
    with torch.no_grad():
        module = load_engine("torch", task, dtype="float64").load_module(weights)  # type: ignore[attr-defined]
        y = module.eval()(torch.from_numpy(x)).numpy()
    # the loss is 0 where the outputs are those of torch
    found = load_engine("numpy", task, dtype="float64").evaluate(weights, (x, y))
    assert found.metrics["loss"] < 1e-24


SENSOR: Layers = [
    Conv1d(3, 5, 5, padding=2),
    BatchNorm(5),
    ReLU(),
    MaxPool1d(2),
    Dropout(0.3),
    Transpose(),
    GRU(5, 6),
    LayerNorm((6,)),
    Linear(6, 4),
]


def sensor_task() -> Task:
    return type("Sensor", (Declarative,), {"layers": SENSOR})()  # type: ignore[no-any-return]


def sensor_data(count: int = 21) -> tuple[Any, Any]:
    generator = np.random.default_rng(3)
    x = generator.standard_normal((count, 3, 16)).astype(np.float32)
    return x, generator.integers(0, 4, count)


def test_rounds_with_dropout_and_running_statistics_agree() -> None:
    # 21 in batches of 4: the last batch is one example
    task, data = sensor_task(), sensor_data()
    weights = task.initial_weights(1)
    plan = plan_of(task, batch_size=4)
    ours, theirs = (
        load_engine(name, task, dtype="float64").train(weights, data, plan) for name in base.names()
    )
    np.testing.assert_allclose(ours.vector, theirs.vector, rtol=1e-5, atol=1e-6)
    changed = weights.with_vector(change_of(ours)).arrays()
    assert np.abs(changed["1.running_mean"]).max() > 0.01
    assert np.abs(changed["1.running_var"]).max() > 0.01
    assert changed["1.num_batches_tracked"] == 0


def test_an_embedding_is_the_first_layer_or_none() -> None:
    with pytest.raises(ConfigError, match="layer 1, Embedding"):
        kinds.tensors([Flatten(), Embedding(3, 2)])


@pytest.mark.parametrize("engine", base.names())
@pytest.mark.parametrize(
    ("given", "said"),
    [(-1, "input -1.0 in example 1"), (7, "input 7.0 in"), (0.5, "input 0.5"), (math.nan, "nan")],
)
def test_a_number_that_an_embedding_does_not_know_is_refused(
    engine: str, given: float, said: str
) -> None:
    task = made([Embedding(7, 2), Flatten(), Linear(6, 1)])
    x = np.zeros((2, 3))
    x[1, 2] = given
    with pytest.raises(ConfigError, match=f"{said}.*whole numbers from 0 to 6"):
        load_engine(engine, task).gradients(task.initial_weights(0), (x, np.zeros((2, 1))))


@pytest.mark.parametrize("engine", base.names())
def test_dropout_draws_the_same_for_micro_batches(engine: str) -> None:
    model: Layers = [Flatten(), Linear(48, 8), Dropout(0.5), ReLU(), Linear(8, 4)]
    task: Task = type("Made", (Declarative,), {"layers": model})()
    weights, data = task.initial_weights(1), sensor_data()
    whole, split = (
        load_engine(engine, task).train(weights, data, plan_of(task, micro_batch=size)).vector
        for size in (0, 3)
    )
    np.testing.assert_allclose(split, whole, rtol=1e-3, atol=2e-6)


def test_patches_in_many_parts_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    task: Task = made([Conv2d(2, 3, 3, padding=1), ReLU(), Conv2d(3, 2, 2, stride=2)])
    weights = random_weights(task, 1)
    generator = np.random.default_rng(2)
    data = generator.standard_normal((7, 2, 6, 8)), generator.standard_normal((7, 2, 3, 4))
    engine = load_engine("numpy", task, dtype="float64")
    loss, whole = engine.gradients(weights, data)
    monkeypatch.setattr(memory, "PATCH_BYTES", 1)
    again, parts = engine.gradients(weights, data)
    assert again == pytest.approx(loss, rel=1e-12)
    for name, gradient in parts.items():
        np.testing.assert_allclose(gradient, whole[name], rtol=1e-10)


def test_first_weights_begin_as_those_of_torch() -> None:
    task = sensor_task()
    ours = task.initial_weights(0)
    theirs = load_engine("torch", task).load_module(ours).state_dict()  # type: ignore[attr-defined]
    assert {s.name: s.shape for s in ours.layout.tensors} == {
        name: tuple(tensor.shape) for name, tensor in theirs.items()
    }
    assert [spec.name for spec in ours.layout.tensors] == list(theirs)
    arrays = ours.arrays()
    assert (arrays["1.weight"] == 1).all()
    assert (arrays["1.running_var"] == 1).all()
    assert not arrays["1.bias"].any()
    assert np.abs(arrays["6.weight_hh_l0"]).max() <= 1 / math.sqrt(6)


def test_a_nan_in_a_pool_is_not_lost() -> None:
    task: Task = made([Linear(4, 4), MaxPool1d(2)])
    x = np.ones((1, 2, 4))
    x[0, 0, 1] = np.nan
    loss, _ = load_engine("numpy", task).gradients(
        task.initial_weights(0), (x, np.zeros((1, 2, 2)))
    )
    assert math.isnan(loss)


@pytest.mark.parametrize("engine", base.names())
def test_with_dropout_and_statistics_training_goes_on_bit_equal_after_a_cut(engine: str) -> None:
    task, data = sensor_task(), sensor_data()
    plan = plan_of(task, optimizer="adam", learning_rate=0.01)
    undisturbed = load_engine(engine, task).train(task.initial_weights(3), data, plan)
    resumed = cut_and_go_on(engine, task, data, plan, 4)
    assert resumed.vector.tobytes() == undisturbed.vector.tobytes()
