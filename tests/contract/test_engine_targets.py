"""Targets mean the same to every engine: they are taken as the loss needs them, or refused."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import algorithms
from fl_client.engines import base
from fl_client.engines.base import load_engine
from fl_client.models.layers import Conv1d, Layers, Linear
from fl_client.models.local_round import LocalRound
from fl_client.models.settings import Objective, TrainingSettings
from fl_client.tasks.base import Task
from runtime.errors import ConfigError
from storage.weights import Weights

CLASSES = np.array([0, 1, 2, 3, 4, 0, 1, 2, 3, 4])
ROWS = np.eye(5, dtype=np.float32)[CLASSES]


class Declared(Task):
    """The identity on five numbers, so that a one-hot input has its class as largest output."""

    training = TrainingSettings(batch_size=4, learning_rate=0.1)
    layers: ClassVar[Layers] = [Linear(5, 5)]

    def model(self) -> Any:
        return self.layers


class Module(Declared):
    def model(self) -> Any:
        return torch.nn.Sequential(torch.nn.Linear(5, 5))


class Number(Declared):
    objective: ClassVar[Objective] = "mean_squared_error"
    layers: ClassVar[Layers] = [Linear(4, 1)]


class NumberModule(Number):
    def model(self) -> Any:
        return torch.nn.Sequential(torch.nn.Linear(4, 1))


def identity(scale: float = 8.0) -> Weights:
    weights = {"0.weight": np.eye(5, dtype=np.float32) * scale, "0.bias": np.zeros(5, np.float32)}
    return Weights.from_arrays(weights)


def plan_of(task: Task) -> LocalRound:
    return LocalRound(algorithms.load("fedavg"), task.training, 1, 1, "d")


RUNS = [("numpy", Declared), ("torch", Declared), ("torch", Module)]
NUMBERS = [("numpy", Number), ("torch", Number), ("torch", NumberModule)]
FORMS = {
    "int64": CLASSES,
    "uint8": CLASSES.astype(np.uint8),
    "uint64": CLASSES.astype(np.uint64),
    "big endian": CLASSES.astype(">i4"),
    "mirrored": CLASSES[::-1].copy()[::-1],
    "a column": CLASSES[:, None],
    "whole floats": CLASSES.astype(np.float64),
    "a column of floats": CLASSES[:, None].astype(np.float32),
    "one-hot integers": np.eye(5, dtype=np.int64)[CLASSES],
    "one-hot truth values": np.eye(5, dtype=np.bool_)[CLASSES],
    "one-hot floats": ROWS.astype(np.float64),
    "a list": CLASSES.tolist(),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("engine", "kind"), RUNS)
def test_class_targets_of_every_form_mean_the_same(
    engine: str, kind: type[Task], form: str
) -> None:
    task = kind()
    found = load_engine(engine, task)
    metrics = found.evaluate(identity(), (ROWS, FORMS[form])).metrics
    # log(1 + 4 exp(-8)), by hand
    assert metrics == pytest.approx({"accuracy": 1.0, "loss": np.log1p(4 * np.exp(-8))}, rel=1e-4)
    plain = found.train(identity(1.0), (ROWS, CLASSES), plan_of(task))
    update = found.train(identity(1.0), (ROWS, FORMS[form]), plan_of(task))
    assert np.abs(update.vector).max() > 0.01
    np.testing.assert_allclose(update.vector, plain.vector, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", [(6,), (6, 1), (6, 1, 1)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int32", "bool", ">f4"])
@pytest.mark.parametrize(("engine", "kind"), NUMBERS)
def test_a_number_as_target_may_stand_in_a_column_or_not(
    engine: str, kind: type[Task], dtype: str, shape: tuple[int, ...]
) -> None:
    inputs = np.zeros((6, 4), np.float32)
    inputs[:, 0] = [0, 1, 1, 0, 1, 0]
    exact = {"0.weight": np.eye(1, 4, dtype=np.float32), "0.bias": np.zeros(1, np.float32)}
    weights, task = Weights.from_arrays(exact), kind()
    targets = inputs[:, 0].astype(dtype).reshape(shape)
    found = load_engine(engine, task)
    assert found.evaluate(weights, (inputs, targets)).metrics == {"loss": 0.0}
    assert not found.train(weights, (inputs, targets), plan_of(task)).vector.any()


@pytest.mark.parametrize("engine", base.names())
def test_metrics_are_given_the_targets_in_the_outputs_shape(engine: str) -> None:
    class Own(Number):
        def metrics(self, outputs: Any, targets: Any) -> dict[str, float]:
            return {"error": float(np.abs(outputs - targets).mean())}

    weights = Weights.from_arrays(
        {"0.weight": np.zeros((1, 4), np.float32), "0.bias": np.ones(1, np.float32)}
    )
    data = np.zeros((3, 4), np.float32), np.array([1.0, 2.0, 3.0])
    assert load_engine(engine, Own()).evaluate(weights, data).metrics["error"] == 1.0


REFUSED: dict[str, tuple[Any, str]] = {
    "minus one": (CLASSES - 1, "example 0: -1 is no class number: .* classes 0 to 4"),
    "too large": (CLASSES + 1, "example 4: 5 is no class number: .* classes 0 to 4"),
    "far too large": (CLASSES.astype(np.uint64) + (1 << 63), "is no class number"),
    "not whole": (CLASSES + 0.5, "example 0: 0.5 is no class number: it is not whole"),
    "not a number": (np.where(CLASSES == 2, np.nan, CLASSES), "example 2: nan is not a finite"),
    "too many columns": (np.zeros((10, 3)), r"class numbers of shape \(\).*they have \(3,\)"),
    "several classes": (np.ones((10, 5)), "example 0: 5.0 is the sum of its class probabilities"),
    "objects": (CLASSES.astype(object), "targets of type object"),
    "text": (CLASSES.astype(str), "targets of type <U21 .text."),
    "dates": (CLASSES.astype("datetime64[s]"), r"datetime64\[s\] .dates."),
    "complex": (CLASSES.astype(np.complex64), "complex64"),
    "masked": (np.ma.masked_equal(CLASSES, 3), "masked values"),
    "ragged": ([[1], [1, 2]] * 5, "targets that are no array"),
    "fewer": (CLASSES[:4], r"inputs of shape \(10, 5\) but targets of shape \(4,\)"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize(("engine", "kind"), RUNS)
def test_what_is_no_class_is_refused_before_the_first_step(
    engine: str, kind: type[Task], case: str
) -> None:
    targets, words = REFUSED[case]
    task, found = kind(), load_engine(engine, kind())
    steps: list[float] = []
    plan = LocalRound(
        algorithms.load("fedavg"),
        task.training,
        1,
        1,
        "d",
        progress=lambda fraction, _: steps.append(fraction),
    )
    with pytest.raises(ConfigError, match=words) as in_training:
        found.train(identity(), (ROWS, targets), plan)
    assert not steps
    with pytest.raises(ConfigError, match=words) as in_evaluation:
        found.evaluate(identity(), (ROWS, targets))
    assert str(in_training.value) == str(in_evaluation.value)
    assert f"task {task.name}" in str(in_training.value)


def test_both_engines_refuse_in_the_same_words() -> None:
    for targets, _ in REFUSED.values():
        said = set()
        for engine in base.names():
            with pytest.raises(ConfigError) as refusal:
                load_engine(engine, Declared()).evaluate(identity(), (ROWS, targets))
            said.add(str(refusal.value))
        assert len(said) == 1


@pytest.mark.parametrize(("engine", "kind"), NUMBERS)
def test_a_target_of_another_shape_and_a_forgotten_objective_are_refused(
    engine: str, kind: type[Task]
) -> None:
    data = np.zeros((6, 4), np.float32), np.zeros((6, 3), np.float32)
    weights = kind().initial_weights(0)
    with pytest.raises(ConfigError, match=r"shape \(1,\) for each example.*have \(3,\)"):
        load_engine(engine, kind()).train(weights, data, plan_of(kind()))
    targets = np.array([1, np.inf, 0, 0, 0, 0])
    with pytest.raises(ConfigError, match="example 1: inf is not a finite number"):
        load_engine(engine, kind()).train(weights, (data[0], targets), plan_of(kind()))
    forgotten = type("Forgotten", (kind,), {"objective": "cross_entropy"})()
    with pytest.raises(ConfigError, match=r'two outputs or more.*"mean_squared_error"'):
        load_engine(engine, forgotten).train(weights, (data[0], np.zeros(6)), plan_of(forgotten))


@pytest.mark.parametrize("hot", [False, True])
def test_a_class_for_each_place_is_learned_alike(hot: bool) -> None:
    class Places(Declared):
        layers: ClassVar[Layers] = [Conv1d(2, 3, 1)]

    generator = np.random.default_rng(3)
    inputs = generator.standard_normal((12, 2, 7)).astype(np.float32)
    classes = generator.integers(0, 3, (12, 7))
    targets = np.moveaxis(np.eye(3)[classes], -1, 1) if hot else classes
    weights = Places().initial_weights(2)
    (ours_loss, ours), (theirs_loss, theirs) = (
        load_engine(name, Places(), dtype="float64").gradients(weights, (inputs, targets))
        for name in base.names()
    )
    assert ours_loss == pytest.approx(theirs_loss, rel=1e-8)
    for name, gradient in ours.items():
        np.testing.assert_allclose(gradient, theirs[name], rtol=1e-8, atol=1e-10)
    measured = [
        load_engine(name, Places()).evaluate(weights, (inputs, targets)).metrics
        for name in base.names()
    ]
    assert measured[0] == pytest.approx(measured[1], rel=1e-5)


def test_soft_class_probabilities_have_torchs_gradient() -> None:
    shares = np.random.default_rng(1).dirichlet(np.ones(5), 10)
    (ours_loss, ours), (theirs_loss, theirs) = (
        load_engine(name, Declared(), dtype="float64").gradients(identity(1.0), (ROWS, shares))
        for name in base.names()
    )
    assert ours_loss == pytest.approx(theirs_loss, rel=1e-8)
    for name, gradient in ours.items():
        np.testing.assert_allclose(gradient, theirs[name], rtol=1e-8, atol=1e-10)


# --- what only torch has -------------------------------------------------------------------------


class Items(torch.utils.data.Dataset[Any]):
    """Ten examples, the third of them with the given target."""

    def __init__(self, third: Any, dtype: Any = np.float32) -> None:
        self._third, self._dtype = third, dtype

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return ROWS[index].astype(self._dtype), self._third if index == 2 else int(CLASSES[index])


def test_targets_of_a_dataset_are_checked_batch_by_batch() -> None:
    engine = load_engine("torch", Module())
    assert engine.evaluate(identity(), Items(2)).metrics["accuracy"] == 1.0
    for wrong in (-1, 5):
        with pytest.raises(ConfigError, match=rf"{wrong} is no class number"):
            engine.train(identity(), Items(wrong), plan_of(Module()))


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_items_of_a_dataset_take_the_type_of_the_weights(dtype: Any) -> None:
    engine = load_engine("torch", Module())
    assert engine.evaluate(identity(), Items(2, dtype)).metrics["accuracy"] == 1.0
    assert engine.train(identity(1.0), Items(2, dtype), plan_of(Module())).vector.any()


def test_what_torch_leaves_out_is_left_out_of_accuracy_too() -> None:
    targets = np.where(CLASSES == 3, -100, CLASSES)
    found = load_engine("torch", Module()).evaluate(identity(), (ROWS, targets))
    assert found.metrics["accuracy"] == 1.0
    for engine in base.names():
        with pytest.raises(ConfigError, match="-100 is no class number"):
            load_engine(engine, Declared()).evaluate(identity(), (ROWS, targets))


def test_a_loss_of_the_tasks_own_takes_whatever_targets_the_data_have() -> None:
    class Own(Module):
        def loss(self, outputs: Any, targets: Any) -> Any:
            return ((outputs - targets[:, :1]) ** 2).mean()

        def metrics(self, outputs: Any, targets: Any) -> dict[str, float]:
            return {"columns": float(targets.shape[1])}

    targets = np.full((10, 3), -7.5, np.float32)
    engine = load_engine("torch", Own())
    assert engine.evaluate(identity(), (ROWS, targets)).metrics["columns"] == 3.0
    assert engine.train(identity(), (ROWS, targets), plan_of(Own())).vector.any()


def test_a_step_of_the_tasks_own_repeats_no_target_along_another_axis() -> None:
    class Own(NumberModule):
        def training_step(self, model: Any, batch: Any) -> Any:
            return super().training_step(model, batch) * 2

    data = np.zeros((6, 4), np.float32), np.arange(6, dtype=np.float32)
    with pytest.raises(ConfigError, match="have no mean_squared_error"):
        load_engine("torch", Own()).train(Own().initial_weights(0), data, plan_of(Own()))


class Labels(Declared):
    objective: ClassVar[Objective] = "binary_cross_entropy"


SEVERAL = (ROWS + ROWS[::-1] > 0).astype(np.uint8)


@pytest.mark.parametrize("engine", base.names())
@pytest.mark.parametrize("kind", ["uint8", "bool", "float64"])
def test_several_labels_at_once_are_learned(engine: str, kind: str) -> None:
    task, found = Labels(), load_engine(engine, Labels())
    data, weights = (SEVERAL.astype(np.float32), SEVERAL.astype(kind)), identity(0.0)
    plan = LocalRound(
        algorithms.load("fedavg"), task.training.overridden({"local_epochs": 300}), 1, 1, "d"
    )
    update = found.train(weights, data, plan).vector
    assert update is not None
    after = found.evaluate(weights.with_vector(weights.vector + update), data).metrics
    assert found.evaluate(weights, data).metrics["loss"] == pytest.approx(np.log(2))
    assert after["accuracy"] == 1.0


@pytest.mark.parametrize("engine", base.names())
def test_far_outputs_have_a_finite_loss_and_gradient(engine: str) -> None:
    data = ROWS, 1 - ROWS
    loss, gradient = load_engine(engine, Labels()).gradients(identity(1e4), data)
    # of five outputs one is 1e4 too large for a 0, and four are log 2 from a 1
    assert loss == pytest.approx((1e4 + 4 * np.log(2)) / 5)
    assert np.isfinite(gradient["0.weight"]).all()


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (SEVERAL * 2, "example 0: 2.0 is no probability from 0 to 1"),
        (CLASSES, r"shape \(5,\) for each example, but the targets have \(\)"),
        (np.where(SEVERAL, np.nan, 0.0), "nan is not a finite number"),
    ],
)
def test_what_is_no_label_is_refused_alike(targets: Any, words: str) -> None:
    for engine in base.names():
        with pytest.raises(ConfigError, match=words):
            load_engine(engine, Labels()).evaluate(identity(), (ROWS, targets))
    with pytest.raises(ConfigError, match='set objective = "binary_cross_entropy"'):
        load_engine("numpy", Declared()).evaluate(identity(), (ROWS, SEVERAL))
