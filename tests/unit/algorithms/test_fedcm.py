"""FedCM against the paper's algorithm on flat vectors, and its point: less drift without state."""

from __future__ import annotations

import numpy as np
import pytest

import algorithms
from tests.unit.algorithms import laws


@pytest.mark.parametrize("alpha", [0.1, 0.7])
def test_rounds_are_the_papers_algorithm(alpha: float) -> None:
    of = laws.clients(4, steps=(4,))
    settings = {"alpha": alpha, "server_learning_rate": 0.8}
    federation = laws.run(algorithms.load("fedcm", settings), of, 0)
    x, delta = np.zeros(laws.SIZE), np.zeros(laws.SIZE)
    for cohort in ([0, 1], [2, 3], [1, 2]):
        federation.run_round(of, cohort)
        changes = []
        for i in cohort:
            y = x.copy()
            for _ in range(4):
                y -= 0.1 * (alpha * of[i].a * (y - of[i].b) + (1 - alpha) * delta)
            changes.append(y - x)
        delta = -np.mean(changes, axis=0) / (0.1 * 4)
        # the paper's server learning rate is that times 0.1 * 4
        x = x - 0.8 * 0.1 * 4 * delta
    np.testing.assert_allclose(federation.weights, x, rtol=1e-12)
    np.testing.assert_allclose(federation.vectors["momentum"], delta, rtol=1e-12)
    assert all(not state for state in federation.states.values())


def test_it_drifts_less_than_fedavg() -> None:
    of = laws.clients(3, steps=(20,), learning_rate=0.02)
    best = laws.optimum(of)
    far, near = (
        np.abs(laws.run(algorithms.load(name), of, 400).weights - best).max()
        for name in ("fedavg", "fedcm")
    )
    assert near < 0.3 * far


def test_with_alpha_1_it_is_fedavg_exactly() -> None:
    laws.assert_fedavg(algorithms.load("fedcm", {"alpha": 1.0}), laws.clients(steps=(3, 7)))


def test_blocks_and_the_kind_of_array_do_not_matter() -> None:
    laws.assert_blockwise(algorithms.load("fedcm"))
    laws.assert_same_on_torch(algorithms.load("fedcm"))


def test_it_warns_of_other_optimisers_than_plain_sgd() -> None:
    assert "FedCM" in algorithms.load("fedcm").advice({"optimizer": "adam"})
    assert algorithms.load("fedcm").advice({"momentum": 0.0, "optimizer": "sgd"}) == ""
