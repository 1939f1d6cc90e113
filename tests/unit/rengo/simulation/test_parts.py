"""Simulated clients that train a part of the model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import rengo
from algorithms import load
from fl_client.tasks.registry import load_task

LOCAL = {"training": {"local_epochs": 1, "batch_size": 10, "learning_rate": 0.1}}


def simulated(rounds: int = 3, **algorithm: Any) -> rengo.SimulationResult:
    settings = {**LOCAL, "algorithm": algorithm}
    return rengo.simulate(
        "digits", clients=6, cohort=4, rounds=rounds, settings=settings, backend="inline"
    )


def test_clients_of_less_width_train_no_more_than_that() -> None:
    before = load_task("digits").initial_weights(0)
    found = simulated(name="heterofl", widths={"cpu": 0.25})
    slices = load("heterofl", {"widths": {"cpu": 0.25}}).part(0.25, 1, before.layout)
    assert slices is not None
    outside = slices.sources(0, before.layout.size) < 0
    after = found.weights.vector
    assert after[outside].tobytes() == before.vector[outside].tobytes()
    assert (after[~outside] != before.vector[~outside]).mean() > 0.5


@pytest.mark.parametrize("name", ["heterofl", "fedrolex"])
def test_whole_clients_are_those_of_fedavg_to_the_bit(name: str) -> None:
    plain = simulated(name="fedavg").weights.vector
    for widths in ({}, {"nobody": 0.5}):
        assert simulated(name=name, widths=widths).weights.vector.tobytes() == plain.tobytes()


def test_one_narrow_client_of_several_makes_another_model_that_learns() -> None:
    mixed = simulated(12, name="heterofl", widths={"client-00000": 0.5, "client-00001": 0.5})
    assert not np.array_equal(mixed.weights.vector, simulated(12, name="fedavg").weights.vector)
    assert mixed.accuracy is not None
    assert mixed.accuracy > 0.6
