"""SCAFFOLD against the paper's equations on flat vectors, and its point: no client drift."""

from __future__ import annotations

import numpy as np
import pytest

import algorithms
from tests.federation import joined
from tests.unit.algorithms import laws

SCAFFOLD = algorithms.load("scaffold")


def test_rounds_of_a_part_of_the_clients_are_the_papers_algorithm() -> None:
    of, taking_part = laws.clients(4, steps=(3, 4)), [[0, 1], [2, 1], [3, 0], [1, 2]]
    federation = laws.run(SCAFFOLD, of, 0)
    x, c, own = np.zeros(laws.SIZE), np.zeros(laws.SIZE), np.zeros((4, laws.SIZE))
    for cohort in taking_part:
        federation.run_round(of, cohort)
        dx, dc = [], []
        for i in cohort:
            y = x.copy()
            for _ in range(of[i].steps):
                y -= 0.1 * (of[i].a * (y - of[i].b) - own[i] + c)
            after = own[i] - c + (x - y) / (of[i].steps * 0.1)
            dx.append(y - x)
            dc.append(after - own[i])
            own[i] = after
        x = x + np.mean(dx, axis=0)
        c = c + 2 / 4 * np.mean(dc, axis=0)
    np.testing.assert_allclose(federation.weights, x, rtol=1e-12)
    np.testing.assert_allclose(federation.vectors["control"], c, rtol=1e-12)
    kept = joined(federation.states[1]["control"], laws.SIZE)
    np.testing.assert_allclose(kept, own[1], rtol=1e-12)


@pytest.mark.parametrize("examples", [1, 3])
def test_it_reaches_the_optimum_that_fedavg_misses(examples: int) -> None:
    of = laws.clients(3, steps=(10,))
    of[0] = type(of[0])(of[0].a, of[0].b, examples, steps=10)
    best = laws.optimum(of)
    far = laws.run(algorithms.load("fedavg"), of, 100).weights - best
    near = laws.run(SCAFFOLD, of, 100).weights - best
    assert np.abs(far).max() > 0.05
    assert np.abs(near).max() < 1e-6


def test_the_first_round_has_variates_of_zeros_and_is_fedavg_exactly() -> None:
    laws.assert_fedavg(SCAFFOLD, laws.clients(steps=(3, 7)), rounds=1)


def test_blocks_and_the_kind_of_array_do_not_matter() -> None:
    laws.assert_blockwise(SCAFFOLD)
    laws.assert_same_on_torch(SCAFFOLD)


@pytest.mark.parametrize("training", [{"momentum": 0.9}, {"optimizer": "adam"}])
def test_it_warns_of_other_optimisers_than_plain_sgd(training: dict[str, object]) -> None:
    assert "SCAFFOLD" in SCAFFOLD.advice(training)
    assert SCAFFOLD.advice({"momentum": 0.0, "optimizer": "sgd"}) == ""
