"""FedDyn against the paper's algorithm on flat vectors, and its point: no client drift."""

from __future__ import annotations

import numpy as np
import pytest

import algorithms
from runtime.errors import ConfigError
from tests.federation import Quadratic, joined
from tests.unit.algorithms import laws


def test_rounds_of_a_part_of_the_clients_are_the_papers_algorithm() -> None:
    alpha, of = 0.3, laws.clients(4, steps=(3, 4))
    federation = laws.run(algorithms.load("feddyn", {"alpha": alpha}), of, 0)
    theta, h, own = np.zeros(laws.SIZE), np.zeros(laws.SIZE), np.zeros((4, laws.SIZE))
    for cohort in ([0, 1], [2, 1], [3, 0], [1, 2]):
        federation.run_round(of, cohort)
        ends = []
        for k in cohort:
            y = theta.copy()
            for _ in range(of[k].steps):
                y -= 0.1 * (of[k].a * (y - of[k].b) - own[k] + alpha * (y - theta))
            own[k] -= alpha * (y - theta)
            ends.append(y)
        h -= alpha * sum(y - theta for y in ends) / 4
        theta = np.mean(ends, axis=0) - h / alpha
    np.testing.assert_allclose(federation.weights, theta, rtol=1e-11)
    np.testing.assert_allclose(federation.vectors["h"], h, rtol=1e-11)
    kept = joined(federation.states[1]["h"], laws.SIZE)
    np.testing.assert_allclose(kept, own[1], rtol=1e-11)


@pytest.mark.parametrize("examples", [1, 3])
def test_it_reaches_the_optimum_that_fedavg_misses(examples: int) -> None:
    of = laws.clients(3, steps=(40,))
    of[0] = Quadratic(of[0].a, of[0].b, examples, steps=40)
    best = laws.optimum(of)
    far = laws.run(algorithms.load("fedavg"), of, 100).weights - best
    federation = laws.run(algorithms.load("feddyn", {"alpha": 1.0}), of, 100)
    assert np.abs(far).max() > 0.05
    assert np.abs(federation.weights - best).max() < 1e-6
    # what a client keeps has become the gradient of its own loss there
    gradient = of[2].a * (best - of[2].b)
    kept = joined(federation.states[2]["h"], laws.SIZE)
    np.testing.assert_allclose(kept, gradient, atol=1e-5)


def test_a_client_in_its_first_round_is_one_of_fedprox() -> None:
    client = laws.clients(1)[0]
    changes = []
    for name, settings in (("feddyn", {"alpha": 0.5}), ("fedprox", {"mu": 0.5})):
        federation = laws.run(algorithms.load(name, settings), [client], 0)
        sent, _ = federation.train(client, {})
        changes.append(joined(sent.vectors["update"], laws.SIZE))
    assert changes[0].tobytes() == changes[1].tobytes()


def test_alpha_is_above_0() -> None:
    with pytest.raises(ConfigError, match="setting alpha: must be above 0"):
        algorithms.load("feddyn", {"alpha": 0.0})


def test_blocks_and_the_kind_of_array_do_not_matter() -> None:
    laws.assert_blockwise(algorithms.load("feddyn"))
    laws.assert_same_on_torch(algorithms.load("feddyn"))
