"""The user's task of the README: short, and it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import algorithms
from fl_client.datasets.device import Device
from fl_client.tasks.registry import load_task
from tests.examples import federated

EXAMPLE = Path(__file__).parents[2] / "examples" / "my_task.py"


def test_it_is_under_forty_lines() -> None:
    assert len(EXAMPLE.read_text().splitlines()) < 40


def test_it_learns_from_devices_that_see_mostly_one_moon() -> None:
    task = load_task(f"{EXAMPLE}:MyTask")
    assert task.name == "my_task"
    accuracy = federated.train(task, algorithms.load("fedavg"), rounds=10, devices=4)
    assert accuracy >= 0.95


def test_its_data_is_the_same_every_time_and_differs_between_devices() -> None:
    task: Any = load_task(f"{EXAMPLE}:MyTask")
    first, again, other = (task.data(Device("d", index=i, count=2))[0] for i in (0, 0, 1))
    assert np.array_equal(first[0], again[0])
    assert not np.array_equal(first[0], other[0])


def test_the_evaluator_has_points_of_its_own() -> None:
    task: Any = load_task(f"{EXAMPLE}:MyTask")
    train, held_out = task.data(Device("e", role="evaluator"))
    assert train is None
    assert len(held_out[0]) == 400
