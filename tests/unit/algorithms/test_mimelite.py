"""MimeLite against the paper's algorithm on flat vectors, and its point: a steadier descent."""

from __future__ import annotations

import numpy as np
import pytest

import algorithms
from tests.unit.algorithms import laws


@pytest.mark.parametrize("beta", [0.5, 0.9])
def test_rounds_are_the_papers_algorithm(beta: float) -> None:
    of = laws.clients(4, steps=(3, 4))
    federation = laws.run(algorithms.load("mimelite", {"beta": beta}), of, 0)
    x, m = np.zeros(laws.SIZE), np.zeros(laws.SIZE)
    for cohort in ([0, 1], [2, 3], [1, 2]):
        federation.run_round(of, cohort)
        ys, gradients = [], []
        for i in cohort:
            gradients.append(of[i].a * (x - of[i].b))
            y = x.copy()
            for _ in range(of[i].steps):
                y -= 0.1 * ((1 - beta) * of[i].a * (y - of[i].b) + beta * m)
            ys.append(y)
        m = (1 - beta) * np.mean(gradients, axis=0) + beta * m
        x = np.mean(ys, axis=0)
    np.testing.assert_allclose(federation.weights, x, rtol=1e-12)
    np.testing.assert_allclose(federation.vectors["momentum"], m, rtol=1e-12)


def test_it_drifts_less_than_fedavg() -> None:
    of = laws.clients(3, steps=(20,))
    best = laws.optimum(of)
    far = laws.run(algorithms.load("fedavg"), of, 100).weights - best
    near = laws.run(algorithms.load("mimelite", {"beta": 0.99}), of, 1000).weights - best
    assert np.abs(near).max() < 0.1 * np.abs(far).max()


def test_without_momentum_it_is_fedavg_exactly() -> None:
    laws.assert_fedavg(algorithms.load("mimelite", {"beta": 0.0}), laws.clients(steps=(3, 7)))


def test_blocks_and_the_kind_of_array_do_not_matter() -> None:
    laws.assert_blockwise(algorithms.load("mimelite"))
    laws.assert_same_on_torch(algorithms.load("mimelite"))


def test_it_warns_of_other_optimisers_than_plain_sgd() -> None:
    assert "MimeLite" in algorithms.load("mimelite").advice({"optimizer": "adam"})
    assert algorithms.load("mimelite").advice({"momentum": 0.0, "optimizer": "sgd"}) == ""
