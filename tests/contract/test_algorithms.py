"""The laws that every algorithm keeps; a new file in ``algorithms/`` is found by itself."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

import algorithms
from algorithms.base import Algorithm
from fl_client.datasets.device import Device
from fl_client.models.layers import Layers, Linear, ReLU
from fl_client.models.local_round import LocalRound, LocalUpdate
from fl_client.models.settings import TrainingSettings
from fl_client.tasks.base import Task
from fl_client.tasks.split import Split
from fl_client.training.participant import Participant
from storage.weights import Weights

Array = np.ndarray[Any, Any]
NAMES = algorithms.names()
ENGINES = ["numpy", "torch"]


def random(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def named(seed: int) -> dict[str, Array]:
    return {"0.weight": random(seed, 3, 4), "0.bias": random(seed + 100, 3)}


@pytest.fixture(params=NAMES)
def algorithm(request: pytest.FixtureRequest) -> Algorithm:
    return algorithms.load(request.param)


def mean(updates: list[LocalUpdate]) -> Array:
    total = sum(update.num_examples for update in updates)
    parts = [u.vector.astype(np.float64) * (u.num_examples / total) for u in updates]
    return np.sum(parts, axis=0)


def test_there_are_algorithms() -> None:
    assert {"fedavg", "fedprox"} <= set(NAMES)


def test_aggregate_mutates_nothing(algorithm: Algorithm) -> None:
    weights, update, state = random(1, 50), random(2, 50), algorithm.init(50)
    for array in (weights, update, *state.values()):
        array.flags.writeable = False
    after, _ = algorithm.aggregate(weights, update, state)
    assert after.shape == weights.shape
    assert after.dtype == weights.dtype
    assert not np.shares_memory(after, weights)


def test_aggregate_by_block_is_aggregate_of_the_whole(algorithm: Algorithm) -> None:
    weights, update, state = random(1, 50), random(2, 50), algorithm.init(50)
    whole, whole_state = algorithm.aggregate(weights, update, state)
    for block in (slice(0, 17), slice(17, 50)):
        part, part_state = algorithm.aggregate(
            weights[block], update[block], {key: value[block] for key, value in state.items()}
        )
        assert np.array_equal(part, whole[block])
        for key, value in part_state.items():
            assert np.array_equal(value, whole_state[key][block])


@pytest.mark.parametrize("xp", ["numpy", "torch"])
def test_client_hooks_mutate_nothing(algorithm: Algorithm, xp: str) -> None:
    make = torch.from_numpy if xp == "torch" else np.array
    g, w, w0 = ({key: make(value) for key, value in named(seed).items()} for seed in (1, 2, 3))
    before = copy.deepcopy((g, w, w0))
    state = algorithm.begin(w0, {})
    algorithm.gradient(g, w, w0, state)
    algorithm.finish(w, w0, state)
    for arrays, kept in zip((g, w, w0), before, strict=True):
        assert all((arrays[key] == kept[key]).all() for key in kept)


def test_client_hooks_are_the_same_on_torch_and_numpy(algorithm: Algorithm) -> None:
    results = []
    for make in (np.array, torch.from_numpy):
        g, w, w0 = ({key: make(value) for key, value in named(s).items()} for s in (1, 2, 3))
        state = algorithm.begin(w0, {})
        gradient = algorithm.gradient(g, w, w0, state)
        update, kept = algorithm.finish(w, w0, state)
        results.append([gradient, update, kept])
    for ours, theirs in zip(*results, strict=True):
        assert list(ours) == list(theirs)
        for key in ours:
            np.testing.assert_allclose(ours[key], theirs[key].numpy(), rtol=1e-6)


# --- laws of whole rounds, on a small declarative task -------------------------------------------


class Rows(Task):
    """Rows of one random data set, a slice for each device; grouped by the device's folder."""

    training = TrainingSettings(local_epochs=1, batch_size=10_000, learning_rate=0.2)

    def model(self) -> Layers:
        return [Linear(5, 7), ReLU(), Linear(7, 3)]

    def data(self, device: Device) -> tuple[Split, Split]:
        x, y = random(0, 90, 5), np.random.default_rng(1).integers(0, 3, 90)
        # unequal parts, so that a mean that forgets the weights is seen
        cuts = np.linspace(0, 1, device.count + 1) ** 2 * 90
        low, high = (round(cuts[device.index + step]) for step in (0, 1))
        return (x[low:high], y[low:high]), None


def train(
    name: str, engine: str, index: int, count: int, weights: Weights, **settings: Any
) -> LocalUpdate:
    task = Rows()
    participant = Participant(task, Device(f"d{index}", index, count), engine)
    plan = LocalRound(
        algorithms.load(name, settings.pop("algorithm", {})),
        task.training.overridden(settings),
        seed=3,
        round=1,
        device_id=f"d{index}",
    )
    return participant.train(weights, plan)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_full_batch_fedavg_is_centralised_training(engine: str, groups: int) -> None:
    weights = Rows().initial_weights(5)
    fedavg = algorithms.load("fedavg")
    central = train("fedavg", engine, 0, 1, weights)
    expected, _ = fedavg.aggregate(weights.vector, central.vector, {})
    clients = [train("fedavg", engine, index, 6, weights) for index in range(6)]
    assert sum(client.num_examples for client in clients) == 90
    # a tree: each group's mean first, then the mean of the groups
    tops = []
    for start in range(groups):
        group = clients[start::groups]
        examples = sum(client.num_examples for client in group)
        tops.append(LocalUpdate(mean(group), examples, {}))
    found, _ = fedavg.aggregate(weights.vector, mean(tops), {})
    assert np.abs(central.vector).max() > 1e-3
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_mean_of_equal_updates_is_that_update(algorithm: Algorithm) -> None:
    update = LocalUpdate(random(4, 30), 7, {})
    # weights that sum to one in binary
    together = mean([update, update, update, update])
    assert np.array_equal(together, update.vector)
    base = random(5, 30)
    one, _ = algorithm.aggregate(base, update.vector, algorithm.init(30))
    many, _ = algorithm.aggregate(base, together, algorithm.init(30))
    np.testing.assert_allclose(many, one, rtol=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_fedprox_with_mu_0_is_fedavg_exactly(engine: str) -> None:
    weights = Rows().initial_weights(5)
    many = {"local_epochs": 4, "batch_size": 8}
    fedavg = train("fedavg", engine, 1, 3, weights, **many)
    same = train("fedprox", engine, 1, 3, weights, algorithm={"mu": 0.0}, **many)
    other = train("fedprox", engine, 1, 3, weights, algorithm={"mu": 1.0}, **many)
    assert same.vector.tobytes() == fedavg.vector.tobytes()
    assert np.linalg.norm(other.vector) < np.linalg.norm(fedavg.vector)


@pytest.mark.parametrize("engine", ENGINES)
def test_training_leaves_the_global_weights_alone(algorithm: Algorithm, engine: str) -> None:
    name = next(name for name in NAMES if type(algorithms.load(name)) is type(algorithm))
    weights = Rows().initial_weights(5)
    before = weights.vector.copy()
    train(name, engine, 0, 2, weights, local_epochs=2, batch_size=8)
    assert np.array_equal(weights.vector, before)
