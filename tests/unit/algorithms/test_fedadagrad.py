"""FedAdagrad against the paper's algorithm, one weight at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest

import algorithms
from tests.unit.algorithms import laws


@pytest.mark.parametrize("settings", [{}, {"beta1": 0.5, "tau": 0.1, "server_learning_rate": 0.3}])
def test_rounds_are_the_papers_algorithm(settings: dict[str, float]) -> None:
    algorithm = algorithms.load("fedadagrad", settings)
    chosen = {"beta1": 0.0, "tau": 0.001, "server_learning_rate": 0.1, **settings}
    updates = [scale * laws.random(seed) for seed, scale in enumerate((1.0, 0.01, 0.3, 1e-5))]
    found = laws.server_rounds(algorithm, updates, laws.random(9))
    for index, start in enumerate(laws.random(9)):
        x, m, v = float(start), 0.0, chosen["tau"] ** 2
        for update, after in zip(updates, found, strict=True):
            delta = float(update[index])
            m = chosen["beta1"] * m + (1 - chosen["beta1"]) * delta
            v += delta**2
            x += chosen["server_learning_rate"] * m / (math.sqrt(v) + chosen["tau"])
            assert after[index] == pytest.approx(x, rel=1e-12)


def test_each_equal_update_makes_a_smaller_step_by_hand() -> None:
    # with v 1, 2, 3 beside a small tau: steps of 1, 1 / sqrt(2), 1 / sqrt(3)
    algorithm = algorithms.load("fedadagrad", {"tau": 1e-9, "server_learning_rate": 1.0})
    found = laws.server_rounds(algorithm, [np.ones(1)] * 3, np.zeros(1))
    steps = np.diff([0.0, *(each[0] for each in found)])
    np.testing.assert_allclose(steps, [1, 2**-0.5, 3**-0.5], rtol=1e-6)


def test_blocks_and_the_kind_of_array_do_not_matter() -> None:
    laws.assert_blockwise(algorithms.load("fedadagrad"))
    laws.assert_same_on_torch(algorithms.load("fedadagrad"))
