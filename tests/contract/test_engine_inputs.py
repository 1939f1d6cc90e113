"""Every engine takes the same inputs: numbers of any type, in any layout of memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import algorithms
from fl_client.engines import base
from fl_client.engines.base import load_engine
from fl_client.models.layers import Linear, Tanh
from fl_client.models.local_round import LocalRound
from fl_client.models.settings import TrainingSettings
from fl_client.tasks.base import Task
from runtime.errors import ConfigError

LABELS = np.array([0, 1, 2] * 4)
# whole numbers, so that every type holds them exactly
VALUES = np.random.default_rng(5).integers(0, 2, (12, 4))
DTYPES = [
    *("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
    *("float16", "float32", "float64", "longdouble", ">f4", ">f8", ">i4"),
]


def packed(array: Any) -> Any:
    """Return a view whose strides are no multiple of its items."""
    rows = np.zeros(array.shape, [("pad", "u1"), ("value", array.dtype)])
    rows["value"] = array
    return rows["value"]


LAYOUTS = {
    "plain": lambda a: a,
    "mirrored": lambda a: a[::-1].copy()[::-1],
    "mirrored columns": lambda a: a[:, ::-1].copy()[:, ::-1],
    "columns first": np.asfortranarray,
    "every second": lambda a: np.repeat(a, 2, 0)[::2],
    "read only": lambda a: np.lib.stride_tricks.as_strided(a, writeable=False),
    "unaligned": lambda a: np.lib.stride_tricks.as_strided(
        np.frombuffer(b"\0" + a.tobytes(), np.uint8)[1:].view(a.dtype).reshape(a.shape)
    ),
    "a field": packed,
}


class Declared(Task):
    training = TrainingSettings(batch_size=5, learning_rate=0.2)

    def model(self) -> Any:
        return [Linear(4, 6), Tanh(), Linear(6, 3)]


class Module(Declared):
    dtype = torch.float32

    def model(self) -> Any:
        parts = (torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3))
        return torch.nn.Sequential(*parts).to(self.dtype)


def plan_of(task: Task, **settings: Any) -> LocalRound:
    return LocalRound(algorithms.load("fedavg"), task.training.overridden(settings), 1, 1, "d")


@pytest.fixture(scope="module")
def expected() -> Any:
    task = Declared()
    data = VALUES.astype(np.float32), LABELS
    return load_engine("numpy", task).train(task.initial_weights(0), data, plan_of(task)).vector


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("engine", base.names())
def test_numbers_of_every_type_and_layout_train_alike(
    engine: str, dtype: str, layout: str, expected: Any
) -> None:
    task, found = Declared(), load_engine(engine, Declared())
    inputs = LAYOUTS[layout](VALUES.astype(dtype))
    weights = task.initial_weights(0)
    update = found.train(weights, (inputs, LABELS), plan_of(task))
    np.testing.assert_allclose(update.vector, expected, rtol=1e-4, atol=1e-6)
    assert 0 <= found.evaluate(weights, (inputs, LABELS)).metrics["accuracy"] <= 1


REFUSED: dict[str, tuple[Any, str]] = {
    "objects": (VALUES.astype(object), "inputs of type object .Python objects.; convert them"),
    "text": (VALUES.astype(str), "inputs of type <U21 .text."),
    "bytes": (VALUES.astype("S4"), r"inputs of type \|S4 .text."),
    "dates": (VALUES.astype("datetime64[s]"), "dates"),
    "complex": (VALUES.astype(np.complex64), "complex64; layers take real numbers"),
    "records": (np.zeros((12, 4), [("a", "f4"), ("b", "f4")]), "no plain numbers"),
    "masked": (np.ma.masked_equal(VALUES, 1), "inputs with masked values"),
    "ragged": ([[1.0, 2.0]] * 11 + [[1.0]], "inputs that are no array"),
    "too few features": (VALUES[:, :3], "layer 0, Linear.*takes no input of shape"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_number_is_refused_by_both_in_the_same_words(case: str) -> None:
    inputs, words = REFUSED[case]
    said = set()
    for engine in base.names():
        found = load_engine(engine, Declared())
        weights = Declared().initial_weights(0)
        with pytest.raises(ConfigError, match=words) as refusal:
            found.train(weights, (inputs, LABELS), plan_of(Declared()))
        said.add(str(refusal.value))
    assert len(said) == 1


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("inputs", ["float32", "float64", "float16"])
@pytest.mark.parametrize("weights", ["float64", "float32", "float16", "bfloat16"])
def test_a_module_of_any_precision_trains_on_arrays_of_any(
    weights: str, inputs: str, layout: str
) -> None:
    class Own(Module):
        dtype = getattr(torch, weights)

    task = Own()
    array = LAYOUTS[layout](VALUES.astype(inputs))
    engine, start = load_engine("torch", task), task.initial_weights(0)
    update = engine.train(start, (array, LABELS), plan_of(task))
    assert np.isfinite(update.vector).all()
    assert np.abs(update.vector).max() > 0.01
    assert engine.evaluate(start, (array, LABELS)).metrics["loss"] == pytest.approx(1.1, abs=0.4)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("objective", ["cross_entropy", "mean_squared_error"])
@pytest.mark.parametrize("weights", ["float64", "float16", "bfloat16"])
def test_a_module_of_another_precision_learns(weights: str, objective: str, optimizer: str) -> None:
    kind = type("Own", (Module,), {"dtype": getattr(torch, weights), "objective": objective})
    task = kind()
    numbers = np.stack([VALUES[:, 0], VALUES[:, 1], VALUES[:, 2]], 1).astype(np.float32)
    targets = LABELS if objective == "cross_entropy" else numbers
    data = VALUES.astype(np.float32), targets
    engine, start = load_engine("torch", task), task.initial_weights(0)
    plan = plan_of(task, local_epochs=30, optimizer=optimizer, learning_rate=0.05)
    after = start.with_vector(start.vector + engine.train(start, data, plan).vector)
    before_loss, after_loss = (engine.evaluate(w, data).metrics["loss"] for w in (start, after))
    assert after_loss < 0.95 * before_loss
