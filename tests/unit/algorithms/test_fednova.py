"""FedNova against the paper's equations, and its point: unequal steps bring no bias."""

from __future__ import annotations

import numpy as np
import pytest

import algorithms
from tests.unit.algorithms import laws

FEDNOVA = algorithms.load("fednova")


def test_a_round_by_the_papers_equations() -> None:
    of = laws.clients(3, steps=(2, 5, 11), learning_rate=0.05)
    of[1] = type(of[1])(of[1].a, of[1].b, 4, steps=5, learning_rate=0.05)
    p, taus = np.array([1, 4, 1]) / 6, np.array([2, 5, 11])
    x = laws.random(9)
    federation = laws.run(FEDNOVA, of, 0)
    federation.weights = x
    federation.run_round(of, [0, 1, 2])
    d = []
    for client in of:
        y, gradients = x.copy(), []
        for _ in range(client.steps):
            gradients.append(client.a * (y - client.b))
            y = y - 0.05 * gradients[-1]
        d.append(np.mean(gradients, axis=0))
    expected = x - (p @ taus) * 0.05 * (p @ np.array(d))
    np.testing.assert_allclose(federation.weights, expected, rtol=1e-12)


def test_unequal_steps_reach_the_true_fixed_point_that_fedavg_misses() -> None:
    # with steps this small the drift within a round is nothing, and what is left is the bias
    of = laws.clients(3, steps=(1, 4, 20), learning_rate=1e-3)
    best = laws.optimum(of)
    far = laws.run(algorithms.load("fedavg"), of, 1500).weights - best
    near = laws.run(FEDNOVA, of, 1500).weights - best
    assert np.abs(far).max() > 0.5
    assert np.abs(near).max() < 0.05


@pytest.mark.parametrize("steps", [1, 4])
def test_equal_steps_are_fedavg_exactly_for_a_power_of_two(steps: int) -> None:
    laws.assert_fedavg(FEDNOVA, laws.clients(steps=(steps,)))


def test_equal_steps_are_fedavg_but_for_rounding() -> None:
    of = laws.clients(steps=(7,))
    found, expected = (
        laws.run(each, of, 5).weights for each in (FEDNOVA, algorithms.load("fedavg"))
    )
    np.testing.assert_allclose(found, expected, rtol=1e-13)


def test_running_statistics_are_sent_as_they_are_and_count_in_no_norm() -> None:
    laws.assert_statistics_apart(FEDNOVA)


def test_blocks_and_the_kind_of_array_do_not_matter() -> None:
    laws.assert_blockwise(FEDNOVA)
    laws.assert_same_on_torch(FEDNOVA)


def test_it_warns_of_other_optimisers_than_plain_sgd() -> None:
    assert "FedNova" in FEDNOVA.advice({"momentum": 0.9})
    assert FEDNOVA.advice({"momentum": 0.0, "optimizer": "sgd"}) == ""
