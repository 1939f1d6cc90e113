"""What a participant makes of a task's own update: it counts, or training failed and says why."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import algorithms
from fl_client.datasets.device import Device
from fl_client.engines.base import TrainingFailed
from fl_client.models.layers import Linear
from fl_client.models.local_round import LocalRound
from fl_client.models.settings import TrainingSettings
from fl_client.tasks.base import Task
from fl_client.training.participant import Participant


class Own(Task):
    """A task that reports what it is told to."""

    value = 0.5
    count = 10

    def model(self) -> list[Linear]:
        return [Linear(2, 2)]

    def local_update(self, weights: Any, context: Any) -> Any:
        del context
        return np.full_like(weights, self.value), self.count, {}


def trained(**changes: Any) -> Any:
    task = Own()
    vars(task).update(changes)
    plan = LocalRound(algorithms.load("fedavg"), TrainingSettings(), 0, 1, "d")
    return Participant(task, Device("d"), "numpy").train(task.initial_weights(0), plan)


@pytest.mark.parametrize("value", [1e12, -3e38, 1e-45])
@pytest.mark.parametrize("count", [1, 1_500_000, 1 << 40])
def test_every_finite_value_and_number_of_examples_counts(value: float, count: int) -> None:
    update = trained(value=value, count=count)
    assert update.num_examples == count
    assert update.vector[0] == np.float32(value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_update_that_is_not_finite_is_a_failed_training(value: float) -> None:
    with pytest.raises(TrainingFailed, match="diverged"):
        trained(value=value)


def test_more_examples_than_may_be_reported_are_a_failed_training() -> None:
    with pytest.raises(TrainingFailed, match="1099511627777 examples, more than the 10995116277"):
        trained(count=(1 << 40) + 1)
