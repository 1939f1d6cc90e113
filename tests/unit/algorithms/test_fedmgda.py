"""FedMGDA+ against the conditions of its problem's solution, and against a search."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import algorithms
from algorithms.base import Report
from algorithms.fedmgda import FedMGDA, shortest
from tests.federation import Array
from tests.unit.algorithms.trained import SIZE, clients, trained


def updates(seed: int, count: int, size: int = 8) -> Array:
    return np.random.default_rng(seed).standard_normal((count, size))


def factors(of: Array, epsilon: float, examples: tuple[int, ...] | None = None) -> Array:
    counts = examples or (1,) * len(of)
    reports = [Report(str(index), count) for index, count in enumerate(counts)]
    return np.array(FedMGDA(epsilon).factors(of @ of.T, reports))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [1, 2, 3, 5, 12])
def test_no_update_is_gone_against(seed: int, count: int) -> None:
    of = updates(seed, count)
    units = of / np.linalg.norm(of, axis=1)[:, None]
    found = factors(of, 1.0) @ of
    length = found @ found
    # the optimality condition of the shortest point of a hull
    assert (units @ found >= length - 1e-8).all()
    shares = factors(of, 1.0) * np.linalg.norm(of, axis=1)
    assert shares.sum() == pytest.approx(1)
    assert (shares >= 0).all()
    assert np.abs((units @ found)[shares > 1e-6] - length).max() < 1e-8


@pytest.mark.parametrize("epsilon", [0.05, 0.2, 0.5])
def test_it_is_the_shortest_of_all_within_the_bounds(epsilon: float) -> None:
    of = np.array([[1.0, 0.2, 0], [0.9, -0.1, 0.3], [-0.5, 1, 0.4]])
    units = of / np.linalg.norm(of, axis=1)[:, None]
    examples = np.array([1, 2, 1]) / 4
    ticks = np.linspace(-epsilon, epsilon, 401)
    best = min(
        float(np.linalg.norm(shares @ units))
        for first, second in itertools.product(ticks, ticks)
        if (shares := examples + np.array([first, second, -first - second])).min() >= 0
        and abs(first + second) <= epsilon
    )
    shares = factors(of, epsilon, (1, 2, 1)) * np.linalg.norm(of, axis=1)
    assert np.abs(shares - examples).max() <= epsilon + 1e-9
    assert shares.sum() == pytest.approx(1)
    found = float(np.linalg.norm(shares @ units))
    assert best - 0.01 < found <= best + 1e-9


def test_with_epsilon_0_it_is_the_mean_of_normalised_updates() -> None:
    of = updates(3, 4)
    expected = np.array([1, 2, 3, 4]) / 10 / np.linalg.norm(of, axis=1)
    np.testing.assert_allclose(factors(of, 0.0, (1, 2, 3, 4)), expected, rtol=1e-9)


def test_the_size_of_an_update_does_not_count() -> None:
    of = updates(4, 5)
    scale = np.array([1e-6, 1, 3, 1e6, 10])
    found, scaled = factors(of, 0.3), factors(of * scale[:, None], 0.3)
    np.testing.assert_allclose(scaled * scale, found, rtol=1e-6)


def test_an_update_of_zeros_is_left_out() -> None:
    of = updates(5, 3)
    with_zeros = np.concatenate([of, np.zeros((1, 8))])
    np.testing.assert_allclose(factors(with_zeros, 1.0)[:3], factors(of, 1.0))
    assert factors(with_zeros, 1.0)[3] == 0
    assert (factors(np.zeros((2, 8)), 1.0) == 0).all()


def test_opposite_updates_cancel() -> None:
    of = np.array([[1.0, 0], [-3, 0]])
    np.testing.assert_allclose(factors(of, 1.0) @ of, 0, atol=1e-9)


def test_a_round_is_a_step_along_the_shortest_point() -> None:
    of = clients()
    settings = {"epsilon": 1.0, "server_learning_rate": 0.5}
    begin = trained("fedmgda", settings, of, rounds=0).weights
    after = trained("fedmgda", settings, of, rounds=1).weights
    changes = []
    for client in of:
        w = begin.copy()
        for _ in range(client.steps):
            w = w - client.learning_rate * client.a * (w - client.b)
        changes.append((w - begin) / np.linalg.norm(w - begin))
    hull = np.array(changes)
    shares = shortest(hull @ hull.T, np.full(3, 1 / 3), np.zeros(3), np.ones(3))
    np.testing.assert_allclose(after, begin + 0.5 * shares @ hull, rtol=1e-9)
    assert len(after) == SIZE


def test_its_server_keeps_single_updates() -> None:
    assert algorithms.load("fedmgda").needs_updates
    assert not algorithms.load("fedavg").needs_updates
