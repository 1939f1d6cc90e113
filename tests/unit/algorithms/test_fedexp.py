"""FedExP against the paper's algorithm, and its point: fewer rounds where clients disagree."""

from __future__ import annotations

import numpy as np

import algorithms
from algorithms.base import Mean
from tests.federation import Quadratic
from tests.unit.algorithms import laws

FEDEXP = algorithms.load("fedexp")


def disagreeing() -> list[Quadratic]:
    """Return clients that share a solution, each of which knows one weight in three."""
    known = (np.arange(laws.SIZE) % 3 == np.arange(3)[:, None]).astype(float)
    return [Quadratic(a, laws.random(7)) for a in known]


def test_rounds_are_the_papers_algorithm() -> None:
    of = [Quadratic(each.a, each.b, 1 + index, steps=4) for index, each in enumerate(disagreeing())]
    p, x, steps = np.array([1, 2, 3]) / 6, np.zeros(laws.SIZE), []
    federation = laws.run(FEDEXP, of, 0)
    for _ in range(3):
        federation.run_round(of, [0, 1, 2])
        deltas = []
        for client in of:
            y = x.copy()
            for _ in range(client.steps):
                y -= 0.1 * client.a * (y - client.b)
            deltas.append(y - x)
        mean, squares = p @ np.array(deltas), np.array([d @ d for d in deltas])
        steps.append(max(1.0, float(p @ squares / (2 * (mean @ mean + 0.001)))))
        x = x + steps[-1] * mean
        np.testing.assert_allclose(federation.weights, x, rtol=1e-12)
    assert steps[0] > 1.1


def test_it_needs_fewer_rounds_where_clients_disagree() -> None:
    of = disagreeing()
    plain, fast = (
        np.abs(laws.run(algorithms.load(name), of, 10).weights - laws.random(7)).max()
        for name in ("fedavg", "fedexp")
    )
    assert fast < 0.8 * plain


def test_where_all_clients_agree_it_is_fedavg_exactly() -> None:
    laws.assert_fedavg(FEDEXP, [laws.clients(1)[0]] * 3)


def test_a_round_that_changes_nothing_without_epsilon_has_a_step_of_1() -> None:
    algorithm = algorithms.load("fedexp", {"epsilon": 0.0})
    mean, zeros = Mean({}, {"squared_norm": 0.0}), {"squared_norm": 0.0}
    assert algorithm.advance(mean, [], {}, zeros) == {"server_learning_rate": 1.0}


def test_running_statistics_are_sent_as_they_are_and_count_in_no_norm() -> None:
    laws.assert_statistics_apart(FEDEXP)


def test_blocks_and_the_kind_of_array_do_not_matter() -> None:
    laws.assert_blockwise(FEDEXP, {"server_learning_rate": 1.5})
    laws.assert_same_on_torch(FEDEXP)
    update = laws.random(3)
    whole, first, rest = (
        FEDEXP.measure(update, Mean({"update": update[part]}), {})["squared_norm"]
        for part in (slice(None), slice(2), slice(2, None))
    )
    assert np.isclose(first + rest, whole, rtol=1e-14)
