"""FedAdam against the paper's algorithm, one weight at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest

import algorithms
from tests.unit.algorithms import laws


@pytest.mark.parametrize(
    "settings", [{}, {"beta1": 0.5, "tau": 0.1, "server_learning_rate": 0.3, "beta2": 0.8}]
)
def test_rounds_are_the_papers_algorithm(settings: dict[str, float]) -> None:
    algorithm = algorithms.load("fedadam", settings)
    chosen = {"beta2": 0.99, "beta1": 0.9, "tau": 0.001, "server_learning_rate": 0.03, **settings}
    updates = [scale * laws.random(seed) for seed, scale in enumerate((1.0, 0.01, 0.3, 1e-5))]
    found = laws.server_rounds(algorithm, updates, laws.random(9))
    for index, start in enumerate(laws.random(9)):
        x, m, v = float(start), 0.0, chosen["tau"] ** 2
        for update, after in zip(updates, found, strict=True):
            delta = float(update[index])
            m = chosen["beta1"] * m + (1 - chosen["beta1"]) * delta
            v = chosen["beta2"] * v + (1 - chosen["beta2"]) * delta**2
            x += chosen["server_learning_rate"] * m / (math.sqrt(v) + chosen["tau"])
            assert after[index] == pytest.approx(x, rel=1e-12)


def test_steps_do_not_depend_on_the_updates_scale() -> None:
    algorithm = algorithms.load("fedadam", {"tau": 1e-9})
    updates = [laws.random(seed) for seed in range(3)]
    found, scaled = (
        laws.server_rounds(algorithm, [scale * each for each in updates], np.zeros(laws.SIZE))[-1]
        for scale in (1.0, 1000.0)
    )
    np.testing.assert_allclose(found, scaled, rtol=1e-5)


def test_blocks_and_the_kind_of_array_do_not_matter() -> None:
    laws.assert_blockwise(algorithms.load("fedadam"))
    laws.assert_same_on_torch(algorithms.load("fedadam"))
