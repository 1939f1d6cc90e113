"""Buffers of torch modules: constants are harmless, and batch normalisation copes with one."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import algorithms
from fl_client.datasets.device import Device
from fl_client.engines.base import TrainingFailed, Tuning, load_engine
from fl_client.models.layers import BatchNorm, Linear, ReLU
from fl_client.models.local_round import LocalRound
from fl_client.models.settings import TrainingSettings
from fl_client.tasks.base import Task
from fl_client.training.participant import Participant
from tests.updates import change_of

INPUTS = np.random.default_rng(2).standard_normal((9, 4)).astype(np.float32)
LABELS = np.array([0, 1, 2] * 3)


def plan_of(task: Task, algorithm: str = "fedavg", **settings: Any) -> LocalRound:
    return LocalRound(algorithms.load(algorithm), task.training.overridden(settings), 1, 1, "d")


# --- constants -----------------------------------------------------------------------------------


class Attention(torch.nn.Module):
    """Four tokens of one number, each sees itself and those before it."""

    change = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.values = torch.nn.Linear(4, 4)
        self.out = torch.nn.Linear(4, 3)
        self.register_buffer("mask", torch.full((4, 4), -torch.inf).triu(1))
        self.register_buffer("positions", torch.arange(4))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.calls += 1
            self.mask[0, 1] += self.change
        scores = x[:, :, None] * x[:, None, :] + self.mask
        mixed = scores.softmax(-1) @ self.values(x)[:, self.positions, None]
        return self.out(mixed[..., 0])


class Attends(Task):
    training = TrainingSettings(batch_size=4, learning_rate=0.1)
    change: ClassVar[float] = 0.0

    def model(self) -> torch.nn.Module:
        made = Attention()
        made.change = self.change
        return made

    def data(self, device: Device) -> Any:
        return (INPUTS, LABELS), (INPUTS, LABELS)


@pytest.mark.parametrize("algorithm", ["fedavg", "fedprox"])
def test_an_infinite_constant_does_not_change_and_the_rest_is_trained(algorithm: str) -> None:
    task = Attends()
    weights = task.initial_weights(0)
    participant = Participant(task, Device("d"), "torch")
    update = participant.train(weights, plan_of(task, algorithm))
    named = weights.with_vector(change_of(update)).arrays()
    assert not named["mask"].any()
    assert np.abs(named["out.weight"]).max() > 1e-3
    after = weights.with_vector(weights.vector + change_of(update))
    np.testing.assert_array_equal(after.arrays()["mask"], weights.arrays()["mask"])
    assert np.isfinite(participant.evaluate(after, plan_of(task)).metrics["loss"])
    # tensors that are no floats stay what they were in version 0
    assert after.others["calls"] == 0
    np.testing.assert_array_equal(after.others["positions"], np.arange(4))


def test_a_constant_that_did_change_to_what_is_no_number_is_refused() -> None:
    class Changes(Attends):
        change = np.inf

    task = Changes()
    with pytest.raises(TrainingFailed, match=r"not finite|diverged"):
        Participant(task, Device("d"), "torch").train(task.initial_weights(0), plan_of(task))


# --- batch normalisation -------------------------------------------------------------------------


class Declared(Task):
    training = TrainingSettings(batch_size=4, learning_rate=0.1, local_epochs=2)

    def model(self) -> Any:
        return [Linear(4, 5), BatchNorm(5), ReLU(), Linear(5, 3)]


class Module(Declared):
    def model(self) -> Any:
        parts = (torch.nn.Linear(4, 5), torch.nn.BatchNorm1d(5), torch.nn.ReLU())
        return torch.nn.Sequential(*parts, torch.nn.Linear(5, 3))


@pytest.mark.parametrize(
    ("count", "settings"),
    [(9, {}), (1, {}), (9, {"batch_size": 1}), (9, {"micro_batch": 1}), (8, {"micro_batch": 3})],
)
def test_a_batch_of_one_trains_as_with_declared_layers(
    count: int, settings: dict[str, int]
) -> None:
    weights = Declared().initial_weights(0)
    data = INPUTS[:count], LABELS[:count]
    numpy_update = load_engine("numpy", Declared()).train(
        weights, data, plan_of(Declared(), **settings)
    )
    update = load_engine("torch", Module()).train(weights, data, plan_of(Module(), **settings))
    assert update.num_examples == numpy_update.num_examples == count
    assert np.abs(update.vector).max() > 1e-3
    np.testing.assert_allclose(update.vector, numpy_update.vector, rtol=2e-3, atol=1e-5)
    assert update.metrics["train_loss"] == pytest.approx(
        numpy_update.metrics["train_loss"], rel=1e-4
    )


class Untracked(Module):
    """Normalises by the batch alone, which of one value a channel has nothing but the value."""

    norm: ClassVar[Any] = torch.nn.BatchNorm1d(5, track_running_stats=False)

    def model(self) -> Any:
        parts = (torch.nn.Linear(4, 5), copy.deepcopy(self.norm), torch.nn.ReLU())
        return torch.nn.Sequential(*parts, torch.nn.Linear(5, 3))


class Grouped(Untracked):
    norm = torch.nn.GroupNorm(5, 5)


WITHOUT_STATISTICS = [Untracked, Grouped]


@pytest.mark.parametrize("kind", WITHOUT_STATISTICS)
@pytest.mark.parametrize("count", [1, 9])
def test_a_batch_of_one_without_running_statistics_is_its_own_mean(
    kind: type[Untracked], count: int
) -> None:
    task, data = kind(), (INPUTS[:count], LABELS[:count])
    weights, engine = task.initial_weights(0), load_engine("torch", task)
    named = {name: array.astype(np.float64) for name, array in weights.arrays().items()}
    # a value less its mean is 0: what follows sees the norm's bias alone, whatever the example
    outputs = np.maximum(named["1.bias"], 0) @ named["3.weight"].T + named["3.bias"]
    expected = np.log(np.exp(outputs).sum()) - outputs[LABELS[8]]
    single = engine.evaluate(weights, (INPUTS[8:], LABELS[8:]))
    assert single.metrics["loss"] == pytest.approx(expected, rel=1e-5)
    update = engine.train(weights, data, plan_of(task))
    assert update.num_examples == count
    moved = weights.with_vector(change_of(update)).arrays()
    assert np.abs(moved["3.bias"]).max() > 1e-3
    # and no gradient of one example reaches what lies before
    reached = np.abs(moved["0.weight"]).max() > 1e-4
    assert reached == (count > 1 and kind is Untracked)


@pytest.mark.parametrize("kind", WITHOUT_STATISTICS)
def test_the_last_batch_of_an_evaluation_may_be_one(
    kind: type[Untracked], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fl_client.engines.torch._EVALUATION_BATCH", 4)
    task = kind()
    weights = task.initial_weights(0)
    devices = Tuning(accelerators=("cpu:0", "cpu:1"))
    for engine in (load_engine("torch", task), load_engine("torch", task, tuning=devices)):
        found = engine.evaluate(weights, (INPUTS, LABELS))
        assert np.isfinite(found.metrics["loss"])


def test_one_example_of_several_values_a_channel_is_normalised_over_them() -> None:
    class Wide(Task):
        training = TrainingSettings(batch_size=1, learning_rate=0.1)

        def model(self) -> Any:
            norm = torch.nn.BatchNorm1d(2)
            return torch.nn.Sequential(
                torch.nn.Unflatten(1, (2, 2)), norm, torch.nn.Flatten(), torch.nn.Linear(4, 3)
            )

    task = Wide()
    weights = task.initial_weights(0)
    update = load_engine("torch", task).train(weights, (INPUTS[:1], LABELS[:1]), plan_of(task))
    named = weights.with_vector(change_of(update)).arrays()
    means = INPUTS[0].reshape(2, 2).mean(1)
    np.testing.assert_allclose(named["1.running_mean"], 0.1 * means, rtol=1e-4)


def test_the_module_is_in_training_again_after_a_batch_of_one() -> None:
    # the batch of one comes in the middle: nine examples, two epochs
    task = Module()
    weights = task.initial_weights(0)
    update = load_engine("torch", task).train(weights, (INPUTS, LABELS), plan_of(task))
    one_epoch = load_engine("torch", task).train(
        weights, (INPUTS, LABELS), plan_of(task, local_epochs=1)
    )
    named, first = (weights.with_vector(change_of(each)).arrays() for each in (update, one_epoch))
    assert (named["1.running_mean"] != first["1.running_mean"]).all()
