"""AFL against the paper's algorithm, and its point: the worst client is served best."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import algorithms
from algorithms.base import Mean, Report
from runtime.errors import ConfigError
from tests.federation import Array, Quadratic, split
from tests.unit.algorithms import laws

RATE = 0.05


def nearest_on_simplex(values: Array) -> Array:
    """Bisect for the shift whose positive parts sum to 1."""
    low, high = values.min() - 1, values.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(values - middle, 0).sum() > 1 else (low, middle)
    return np.asarray(np.maximum(values - high, 0))


def algorithm() -> algorithms.base.Algorithm:
    return algorithms.load("afl", {"mixture_learning_rate": RATE})


def test_rounds_of_all_clients_are_the_papers_algorithm() -> None:
    of = [Quadratic(each.a, each.b, 1 + n, steps=1) for n, each in enumerate(laws.clients(4))]
    federation = laws.run(algorithm(), of, 0)
    x, mixture = np.zeros(laws.SIZE), np.full(4, 0.25)
    for _ in range(12):
        federation.run_round(of, [0, 1, 2, 3])
        losses = np.array([each.loss(split(x)) for each in of])
        x = x - 0.1 * mixture @ np.array([each.a * (x - each.b) for each in of])
        mixture = nearest_on_simplex(mixture + RATE * losses)
        np.testing.assert_allclose(federation.weights, x, rtol=1e-4)
    assert 0 < mixture.max() < 1
    kept = [federation.scalars[f"client {k}"] for k in range(4)]
    np.testing.assert_allclose(kept, mixture, atol=1e-5)


def test_of_two_clients_the_worse_is_served_as_well_as_the_other() -> None:
    # FedAvg's optimum is near the client with more data; the fair one is in the middle
    ones = np.ones(laws.SIZE)
    of = [Quadratic(ones, 0 * ones, 9, steps=1), Quadratic(ones, 2 * ones, 1, steps=1)]
    plain, fair = (
        laws.run(each, of, 600).weights for each in (algorithms.load("fedavg"), algorithm())
    )
    np.testing.assert_allclose(plain, 0.2 * ones, atol=1e-6)
    np.testing.assert_allclose(fair, ones, atol=0.01)


def test_clients_that_took_no_part_share_a_weight_and_all_weights_sum_to_1() -> None:
    mean, reports = Mean({}, {}, 2, 5), [Report(name, 7, {"loss": 1.0}) for name in "ab"]
    found = algorithm().advance(mean, reports, {}, {})
    expected = nearest_on_simplex(np.array([0.2 + RATE, 0.2 + RATE, 0.2, 0.2, 0.2]))
    assert set(found) == {"client a", "client b", "others"}
    np.testing.assert_allclose([found["client a"], found["others"]], expected[[0, 4]])
    assert found["client a"] + found["client b"] + 3 * found["others"] == pytest.approx(1)
    assert algorithm().weight(Report("c", 7), found) == found["others"]
    # where everybody has taken part, one who joins later begins as those that had not
    assert algorithm().advance(Mean({}, {}, 2, 2), reports, found, {})["others"] == found["others"]


def test_a_cohort_whose_weights_fell_to_0_still_has_a_mean() -> None:
    assert algorithm().weight(Report("a", 7), {"client a": 0.0, "others": 0.5}) > 0


def test_with_a_mixture_that_stays_it_is_fedavg_of_equal_clients_exactly() -> None:
    laws.assert_fedavg(
        algorithms.load("afl", {"mixture_learning_rate": 0.0}), laws.clients(steps=(3, 7))
    )


def test_blocks_and_the_kind_of_array_do_not_matter() -> None:
    laws.assert_blockwise(algorithm())
    laws.assert_same_on_torch(algorithm())


def test_more_clients_than_the_server_keeps_numbers_end_the_run_in_its_first_round() -> None:
    mean, reports = Mean({}, {}, 1, 1024), [Report("a", 7, {"loss": 1.0})]
    with pytest.raises(ConfigError, match=r"at most 1023; this run knows 1024: take qfedavg"):
        algorithm().advance(mean, reports, {}, {})
    found = algorithm().advance(replace(mean, population=1023), reports, {}, {})
    assert set(found) == {"client a", "others"}
