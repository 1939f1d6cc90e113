"""FedDC against the paper's algorithm on flat vectors, and its point: no client drift."""

from __future__ import annotations

import numpy as np
import pytest

import algorithms
from tests.federation import Quadratic, joined
from tests.unit.algorithms import laws


def test_rounds_of_a_part_of_the_clients_are_the_papers_algorithm() -> None:
    alpha, of = 0.3, laws.clients(4, steps=(3, 4))
    federation = laws.run(algorithms.load("feddc", {"alpha": alpha}), of, 0)
    w, last = np.zeros(laws.SIZE), np.zeros(laws.SIZE)
    h, g = np.zeros((4, laws.SIZE)), np.zeros((4, laws.SIZE))
    for cohort in ([0, 1], [2, 1], [3, 0], [1, 2]):
        federation.run_round(of, cohort)
        ends = []
        for i in cohort:
            theta = w.copy()
            for _ in range(of[i].steps):
                penalty = alpha * (h[i] + theta - w)
                correction = (g[i] - last) / (0.1 * of[i].steps)
                theta -= 0.1 * (of[i].a * (theta - of[i].b) + penalty + correction)
            g[i] = theta - w
            h[i] += g[i]
            ends.append(theta)
        last = np.mean([g[i] for i in cohort], axis=0)
        # the drifts of those that did not train count as well
        w = np.mean(ends, axis=0) + h.mean(axis=0)
    np.testing.assert_allclose(federation.weights, w, rtol=1e-11)
    kept = joined(federation.states[1]["drift"], laws.SIZE)
    np.testing.assert_allclose(kept, h[1], rtol=1e-11)


@pytest.mark.parametrize("examples", [1, 3])
def test_it_reaches_the_optimum_that_fedavg_misses(examples: int) -> None:
    of = laws.clients(3, steps=(40,))
    of[0] = Quadratic(of[0].a, of[0].b, examples, steps=40)
    best = laws.optimum(of)
    far = laws.run(algorithms.load("fedavg"), of, 200).weights - best
    near = laws.run(algorithms.load("feddc", {"alpha": 1.0}), of, 200).weights - best
    assert np.abs(far).max() > 0.05
    assert np.abs(near).max() < 1e-6


def test_a_client_in_its_first_round_is_one_of_fedprox() -> None:
    client = laws.clients(1)[0]
    changes = []
    for name, settings in (("feddc", {"alpha": 0.5}), ("fedprox", {"mu": 0.5})):
        federation = laws.run(algorithms.load(name, settings), [client], 0)
        sent, _ = federation.train(client, {})
        changes.append(joined(sent.vectors["update"], laws.SIZE))
    assert changes[0].tobytes() == changes[1].tobytes()


def test_blocks_and_the_kind_of_array_do_not_matter() -> None:
    laws.assert_blockwise(algorithms.load("feddc"))
    laws.assert_same_on_torch(algorithms.load("feddc"))


def test_it_warns_of_other_optimisers_than_plain_sgd() -> None:
    assert "FedDC" in algorithms.load("feddc").advice({"momentum": 0.9})
    assert algorithms.load("feddc").advice({"momentum": 0.0, "optimizer": "sgd"}) == ""
