"""The federated threshold is the one of all errors in one place, and it finds anomalies."""

from __future__ import annotations

import numpy as np
import pytest

import algorithms
from fl_client.datasets.device import Device
from fl_client.models.local_round import LocalRound
from fl_client.tasks.digits_anomaly import DigitsAnomaly, anomaly_threshold
from fl_client.training.participant import Participant
from runtime.errors import ConfigError
from storage.weights import Weights

FEDAVG = algorithms.load("fedavg")


def clients(count: int, partition: str, engine: str = "numpy") -> list[Participant]:
    return [
        Participant(DigitsAnomaly(), Device(f"d{index}", index, count, partition=partition), engine)
        for index in range(count)
    ]


def measured(fleet: list[Participant], weights: Weights) -> dict[str, float]:
    """What the server works out of devices' evaluations: means weighted by examples."""
    task = fleet[0].task
    plan = LocalRound(FEDAVG, task.training, 0, 1, "d")
    found = [client.evaluate(weights, plan) for client in fleet]
    total = sum(each.num_examples for each in found)
    return {
        name: sum(each.num_examples * each.metrics[name] for each in found) / total
        for name in ("error", "error_squared")
    }


def errors(weights: Weights, images: np.ndarray) -> np.ndarray:
    """Each image's mean squared error, by the model's formula written out."""
    w = {name: array.astype(np.float64) for name, array in weights.arrays().items()}
    code = np.tanh(images @ w["1.weight"].T + w["1.bias"]) @ w["3.weight"].T + w["3.bias"]
    restored = np.tanh(code @ w["4.weight"].T + w["4.bias"]) @ w["6.weight"].T + w["6.bias"]
    return ((restored - images) ** 2).mean(1)


@pytest.mark.parametrize("engine", ["numpy", "torch"])
@pytest.mark.parametrize("partition", ["iid", "dirichlet:0.1", "quantity:0.2"])
def test_it_is_that_of_all_held_out_errors_in_one_place(partition: str, engine: str) -> None:
    fleet = [each for each in clients(5, partition, engine) if each._splits[1] is not None]
    weights = fleet[0].task.initial_weights(3)
    pooled = np.concatenate([errors(weights, each.held_out_split[0]) for each in fleet])
    found = anomaly_threshold(measured(fleet, weights), 2.5)
    assert found == pytest.approx(pooled.mean() + 2.5 * pooled.std(), rel=1e-4)


def test_anomalies_are_found_and_few_others() -> None:
    task, fleet = DigitsAnomaly(), clients(6, "dirichlet:0.5")
    weights = task.initial_weights(0)
    for number in range(1, 16):
        plans = [LocalRound(FEDAVG, task.training, 0, number, client.device.id) for client in fleet]
        updates = [client.train(weights, plan) for client, plan in zip(fleet, plans, strict=True)]
        total = sum(update.num_examples for update in updates)
        mean = sum(u.vector.astype(np.float64) * (u.num_examples / total) for u in updates)
        weights = weights.with_vector((weights.vector + mean).astype(np.float32))
    least = anomaly_threshold(measured(fleet, weights))
    _, (unseen, _) = task.data(Device("judge", role="evaluator"))
    assert (errors(weights, task.anomalies()) > least).mean() >= 0.7
    assert (errors(weights, unseen) > least).mean() <= 0.1


def test_no_device_has_an_anomaly() -> None:
    task = DigitsAnomaly()
    strange = {image.tobytes() for image in task.anomalies()}
    assert len(strange) == 178
    for device in [*(Device("d", index, 3) for index in range(3)), Device("e", role="evaluator")]:
        for split in task.data(device):
            if split is not None:
                assert not strange & {image.tobytes() for image in split[0]}


def test_equal_errors_have_their_own_value_as_threshold() -> None:
    # the mean of squares may come out a little below the square of the mean
    assert anomaly_threshold({"error": 0.1, "error_squared": 0.01 - 1e-18}) == 0.1
    with pytest.raises(ConfigError, match=r"error_squared.*evaluate on devices"):
        anomaly_threshold({"error": 1.0})
