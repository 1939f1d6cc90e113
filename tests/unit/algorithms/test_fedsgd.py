"""FedSGD is gradient descent on the mean loss, whatever clients do in a round."""

from __future__ import annotations

import numpy as np
import pytest

import algorithms
from tests.federation import Quadratic
from tests.unit.algorithms import laws

FEDSGD = algorithms.load("fedsgd")


@pytest.mark.parametrize("steps", [(1,), (4,), (3, 10)])
def test_a_round_is_one_step_of_gradient_descent_on_all_data(steps: tuple[int, ...]) -> None:
    plain = laws.clients(3, steps=steps)
    of = [
        Quadratic(each.a, each.b, 1 + index, steps=each.steps) for index, each in enumerate(plain)
    ]
    x = np.zeros(laws.SIZE)
    for _ in range(3):
        gradients = [each.a * (x - each.b) for each in of]
        x = x - 0.1 * np.average(gradients, axis=0, weights=[1, 2, 3])
    np.testing.assert_allclose(laws.run(FEDSGD, of, 3).weights, x, rtol=1e-12)


def test_it_reaches_the_optimum_that_fedavg_misses() -> None:
    of = laws.clients(3, steps=(10,))
    best = laws.optimum(of)
    assert np.abs(laws.run(algorithms.load("fedavg"), of, 500).weights - best).max() > 0.05
    assert np.abs(laws.run(FEDSGD, of, 500).weights - best).max() < 1e-6


def test_with_one_local_step_it_is_fedavg_exactly() -> None:
    laws.assert_fedavg(FEDSGD, laws.clients(steps=(1,)))


def test_blocks_and_the_kind_of_array_do_not_matter() -> None:
    laws.assert_blockwise(FEDSGD)
    laws.assert_same_on_torch(FEDSGD)


def test_it_warns_of_other_optimisers_than_plain_sgd() -> None:
    assert "FedSGD" in FEDSGD.advice({"optimizer": "adam"})
    assert FEDSGD.advice({"momentum": 0.0, "optimizer": "sgd"}) == ""
