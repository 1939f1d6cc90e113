"""The laws of training a cohort at once: what each client sends is what the numpy engine gives it.

Sums are taken in another order, and nothing else differs: the bound is one of rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import algorithms
from algorithms.base import UPDATE
from fl_client.engines.base import TrainingFailed
from fl_client.engines.numpy import NumpyEngine
from fl_client.engines.stacked.client import CohortMember
from fl_client.engines.stacked.cohort import CohortEngine
from fl_client.engines.stacked.per_client import CannotBatch
from fl_client.models.layers import (
    AvgPool1d,
    Conv1d,
    Dropout,
    Flatten,
    GlobalAvgPool,
    LayerNorm,
    Layers,
    Linear,
    MaxPool2d,
    ReLU,
    Reshape,
    Sigmoid,
    Tanh,
    Transpose,
)
from fl_client.models.local_round import LocalRound, LocalUpdate
from fl_client.models.settings import Objective, TrainingSettings
from fl_client.tasks.base import Task
from fl_client.tasks.context import LocalContext
from storage.weights import Vector

Array = np.ndarray[Any, Any]
BOUND = 1e-4
"""How far a value may be from the engine's, relative to the largest of its vector."""
LEAST = 1e-7
"""As much as rounding leaves of a sum of values of both signs."""

EVEN, RAGGED = (12, 12, 12), (23, 8, 41, 10, 3, 1)
SETTINGS = TrainingSettings(local_epochs=2, batch_size=8, learning_rate=0.05)
ON_NUMPY = [name for name in algorithms.names() if "loss" not in algorithms.load(name).needs]
# what decides something differs from client to client: these are trained alone
APART = {
    ("fedrep", RAGGED): r"round\(\) of a number that differs from client to client",
    ("fjord", EVEN): "what each client draws by itself",
    ("fjord", RAGGED): "what each client draws by itself",
}


class Rows(Task):
    """A model with every kind of weight that algorithms tell apart."""

    layers: Layers = (
        *(Linear(6, 9, rank=2), LayerNorm((9,)), Tanh(), Dropout(0.2)),
        *(Linear(9, 8), ReLU(), Linear(8, 4)),
    )

    def model(self) -> Layers:
        return list(self.layers)


def rows(sizes: Sequence[int], classes: int = 4) -> list[tuple[Array, Array]]:
    """Return each client's examples, which differ from client to client."""
    random = np.random.default_rng(5)
    found = []
    for number, size in enumerate(sizes):
        targets = (random.integers(0, 2, size) + number) % classes
        inputs = random.standard_normal((size, 6)) + targets[:, np.newaxis] / 2
        found.append((inputs.astype(np.float32), targets))
    return found


def two_rounds(
    task: Task, data: list[tuple[Array, Array]], plan: LocalRound
) -> list[tuple[list[LocalUpdate], list[Any]]]:
    """Return what the engine and the cohort's engine give, twice, from the engine's states."""
    engine, cohort = NumpyEngine(task), CohortEngine(task)
    weights = task.initial_weights(3)
    states: list[Mapping[str, Array]] = [{} for _ in data]
    found = []
    for number in (1, 2):
        plans = [
            replace(plan, round=number, device_id=f"client-{each}", state=state)
            for each, state in enumerate(states)
        ]
        alone = [engine.train(weights, *pair) for pair in zip(data, plans, strict=True)]
        members = [
            CohortMember(cohort.examples(own), each) for own, each in zip(data, plans, strict=True)
        ]
        found.append((alone, cohort.train(weights, members)))
        states = [update.state for update in alone]
    return found


def plan_of(algorithm: str, settings: TrainingSettings = SETTINGS) -> LocalRound:
    return LocalRound(algorithms.load(algorithm), settings, 7, 1, "")


def require_close(one: LocalUpdate, other: LocalUpdate) -> None:
    assert isinstance(other, LocalUpdate), other
    named = [
        {**each.vectors, **({} if each.vector is None else {UPDATE: each.vector}), **each.state}
        for each in (one, other)
    ]
    assert list(named[0]) == list(named[1])
    for name, expected in named[0].items():
        most = np.abs(expected).max()
        assert np.shape(named[1][name]) == np.shape(expected), name
        assert np.abs(named[1][name] - expected).max() <= BOUND * most + LEAST, name
    assert one.num_examples == other.num_examples
    assert other.metrics == pytest.approx(one.metrics, rel=BOUND)
    assert other.scalars == pytest.approx(one.scalars, rel=BOUND, abs=LEAST)


@pytest.mark.parametrize("sizes", [EVEN, RAGGED], ids=["even", "ragged"])
@pytest.mark.parametrize("algorithm", ON_NUMPY)
def test_an_algorithms_clients_send_what_they_send_alone(
    algorithm: str, sizes: tuple[int, ...]
) -> None:
    if (algorithm, sizes) in APART:
        with pytest.raises(CannotBatch, match=APART[algorithm, sizes]):
            two_rounds(Rows(), rows(sizes), plan_of(algorithm))
        return
    for alone, together in two_rounds(Rows(), rows(sizes), plan_of(algorithm)):
        for one, other in zip(alone, together, strict=True):
            require_close(one, other)


@pytest.mark.parametrize("algorithm", sorted(set(algorithms.names()) - set(ON_NUMPY)))
def test_a_loss_of_its_own_is_not_batched(algorithm: str) -> None:
    cohort, task = CohortEngine(Rows()), Rows()
    members = [CohortMember(cohort.examples(own), plan_of(algorithm)) for own in rows(EVEN)]
    with pytest.raises(CannotBatch, match="the loss"):
        cohort.train(task.initial_weights(0), members)


@pytest.mark.parametrize("algorithm", ["fedavg", "fedprox", "lora"])
@pytest.mark.parametrize(
    "more",
    [
        {"momentum": 0.9},
        {"weight_decay": 0.1},
        {"clip_norm": 0.3},
        {"max_steps": 3},
        {"optimizer": "adam", "learning_rate": 0.01},
        {"class_weights": (1.0, 2.0, 0.0, 0.5)},
        {"micro_batch": 3},
        {"batch_size": 64, "local_epochs": 3},
    ],
    ids=lambda more: next(iter(more)),
)
def test_settings_are_the_engines(algorithm: str, more: dict[str, Any]) -> None:
    settings = SETTINGS.overridden(more)
    task = Rows()
    # where a rectifier's input is about zero, rounding decides about a gradient
    task.layers = (Linear(6, 9, rank=2), Tanh(), Linear(9, 4))
    ((alone, together), _) = two_rounds(task, rows(RAGGED), plan_of(algorithm, settings))
    for one, other in zip(alone, together, strict=True):
        require_close(one, other)


class Numbers(Task):
    """Targets of another objective than classes."""

    objective: Objective = "mean_squared_error"

    def model(self) -> Layers:
        return [Linear(6, 5), Tanh(), Linear(5, 3)]


@pytest.mark.parametrize("objective", ["mean_squared_error", "binary_cross_entropy"])
def test_other_objectives(objective: Objective) -> None:
    class Other(Numbers):
        pass

    Other.objective = objective
    random = np.random.default_rng(0)
    data = [(inputs, random.integers(0, 2, (len(inputs), 3))) for inputs, _ in rows(RAGGED)]
    ((alone, together), _) = two_rounds(Other(), data, plan_of("fedavg"))
    for one, other in zip(alone, together, strict=True):
        require_close(one, other)


@pytest.mark.parametrize(
    "layers",
    [
        [Reshape((2, 3)), Linear(3, 4), Sigmoid(), Flatten(), Linear(8, 4)],
        [Reshape((3, 2)), Transpose(), Linear(3, 4), AvgPool1d(2), Flatten(), Linear(4, 4)],
        [Linear(6, 16), Reshape((1, 4, 4)), MaxPool2d(2), Flatten(), Linear(4, 4), Tanh()],
        [Linear(6, 12), Reshape((4, 3)), LayerNorm((4, 3)), GlobalAvgPool()],
        [Linear(6, 300), Tanh(), Linear(300, 200), Tanh(), Linear(200, 4, bias=False)],
    ],
    ids=["inner-axes", "transposed", "pooled", "normalised", "large"],
)
def test_layers_are_the_engines(layers: Layers) -> None:
    task = Rows()
    task.layers = tuple(layers)
    ((alone, together), _) = two_rounds(task, rows(RAGGED), plan_of("fedavg"))
    for one, other in zip(alone, together, strict=True):
        require_close(one, other)


def test_a_client_that_diverges_ends_alone() -> None:
    task, data = Rows(), rows(RAGGED)
    task.layers = (Linear(6, 8), ReLU(), Linear(8, 4))
    data[2][0][:] *= 1e20
    cohort, weights = CohortEngine(task), task.initial_weights(3)
    plans = [replace(plan_of("fedavg"), device_id=f"client-{each}") for each in range(len(data))]
    engine = NumpyEngine(task)
    found = cohort.train(
        weights, [CohortMember(cohort.examples(d), p) for d, p in zip(data, plans, strict=True)]
    )
    for number, (own, plan, outcome) in enumerate(zip(data, plans, found, strict=True)):
        if number == 2:
            with (
                pytest.raises(TrainingFailed) as told,
                np.errstate(over="ignore", invalid="ignore"),
            ):
                engine.train(weights, own, plan)
            assert isinstance(outcome, TrainingFailed)
            assert str(outcome) == str(told.value)
        else:
            require_close(engine.train(weights, own, plan), outcome)


def test_threads_change_rounding_alone() -> None:
    task, data = Rows(), rows(RAGGED)
    task.layers = (Linear(6, 300), Tanh(), Linear(300, 200), Linear(200, 4))
    weights = task.initial_weights(3)
    found = []
    for threads in (1, 2):
        cohort = CohortEngine(task, threads=threads)
        plans = [replace(plan_of("fedavg"), device_id=f"c{each}") for each in range(len(data))]
        members = [CohortMember(cohort.examples(d), p) for d, p in zip(data, plans, strict=True)]
        found.append(cohort.train(weights, members))
    for one, other in zip(*found, strict=True):
        assert isinstance(one, LocalUpdate)
        assert isinstance(other, LocalUpdate)
        require_close(one, other)


class Own(Rows):
    """A task that replaces local training."""

    def local_update(self, weights: Vector, context: LocalContext) -> LocalUpdate:
        return context.train()


def test_what_cannot_be_batched_is_named() -> None:
    task = Rows()
    task.layers = (Reshape((1, 6)), Conv1d(1, 2, 3), Flatten(), Linear(8, 4))
    with pytest.raises(CannotBatch, match="layer 1, Conv1d of the model of task rows"):
        CohortEngine(task)
    with pytest.raises(CannotBatch, match=r"local_update\(\) of task own"):
        CohortEngine(Own())
    shares = np.full((12, 4), 0.25, np.float32)
    with pytest.raises(CannotBatch, match="more than one class number"):
        CohortEngine(Rows()).examples((rows(EVEN)[0][0], shares))
