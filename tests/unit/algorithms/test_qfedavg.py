"""q-FedAvg against the paper's algorithm, and its point: the worst client is better off."""

from __future__ import annotations

import numpy as np
import pytest

import algorithms
from tests.federation import Quadratic
from tests.unit.algorithms import laws


@pytest.mark.parametrize("q", [0.2, 1.0, 2.0])
def test_a_round_is_the_papers_algorithm(q: float) -> None:
    of, x = laws.clients(3, steps=(3, 5)), laws.random(9)
    federation = laws.run(algorithms.load("qfedavg", {"q": q}), of, 0)
    federation.weights = x
    federation.run_round(of, [0, 1, 2])
    deltas, hs, lipschitz = [], [], 1 / 0.1
    for client in of:
        loss = 0.5 * (client.a * (x - client.b) ** 2).sum()
        y = x.copy()
        for _ in range(client.steps):
            y -= 0.1 * client.a * (y - client.b)
        dw = lipschitz * (x - y)
        deltas.append(loss**q * dw)
        hs.append(q * loss ** (q - 1) * (dw @ dw) + lipschitz * loss**q)
    expected = x - np.sum(deltas, axis=0) / np.sum(hs)
    np.testing.assert_allclose(federation.weights, expected, rtol=1e-12)


def losses(q: float) -> list[float]:
    # two clients agree and one does not: the mean loss leaves that one behind
    ones = np.ones(laws.SIZE)
    of = [Quadratic(ones, b * ones, steps=1) for b in (0.0, 0.1, 3.0)]
    weights = laws.run(algorithms.load("qfedavg", {"q": q}), of, 400).weights
    return [client.loss({"body": weights[:3], "head": weights[3:]}) for client in of]


def test_the_worst_client_is_better_off_and_losses_spread_less_the_larger_q() -> None:
    found = [losses(q) for q in (0.0, 1.0, 5.0)]
    worst, spread = [max(each) for each in found], [np.var(each) for each in found]
    assert worst[0] > 1.2 * worst[1] > 1.2 * 1.1 * worst[2]
    assert spread[0] > spread[1] > spread[2]


def test_with_q_0_it_is_fedavg_exactly() -> None:
    laws.assert_fedavg(algorithms.load("qfedavg", {"q": 0.0}), laws.clients(steps=(3, 7)))


def test_a_client_without_loss_changes_nothing_and_breaks_nothing() -> None:
    here = Quadratic(np.ones(laws.SIZE), np.zeros(laws.SIZE))
    weights = laws.run(algorithms.load("qfedavg", {"q": 0.5}), [here], 2).weights
    assert np.array_equal(weights, np.zeros(laws.SIZE))


def test_running_statistics_are_sent_as_they_are_and_count_in_no_norm() -> None:
    laws.assert_statistics_apart(algorithms.load("qfedavg", {"q": 2.0}))


def test_blocks_and_the_kind_of_array_do_not_matter() -> None:
    laws.assert_blockwise(algorithms.load("qfedavg"))
    laws.assert_same_on_torch(algorithms.load("qfedavg"))
