"""TERM against the tilted loss itself, and its point: fair above 0, robust below."""

from __future__ import annotations

import numpy as np
import pytest

import algorithms
from algorithms.base import Mean, Report
from tests.federation import Quadratic, joined, split
from tests.unit.algorithms import laws


@pytest.mark.parametrize("t", [-0.5, 0.1, 1.0])
def test_rounds_of_one_step_are_gradient_descent_on_the_tilted_loss(t: float) -> None:
    of = [Quadratic(each.a, 0.3 * each.b, 1 + n, steps=1) for n, each in enumerate(laws.clients())]
    federation = laws.run(algorithms.load("term", {"t": t}), of, 0)
    n = np.array([1, 2, 3]) / 6

    def tilted(x: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
        return float(np.log(n @ [np.exp(t * each.loss(split(x))) for each in of]) / t)

    x, h = np.zeros(laws.SIZE), 1e-6
    for _ in range(5):
        federation.run_round(of, [0, 1, 2])
        assert federation.scalars["tilted_loss"] == pytest.approx(tilted(x), rel=1e-9)
        steps = h * np.eye(laws.SIZE)
        gradient = [(tilted(x + each) - tilted(x - each)) / (2 * h) for each in steps]
        x = x - 0.1 * np.array(gradient)
        np.testing.assert_allclose(federation.weights, x, atol=1e-7)


def losses(t: float) -> list[float]:
    ones = np.ones(laws.SIZE)
    of = [Quadratic(ones, b * ones, steps=1) for b in (0.0, 0.1, 1.5)]
    weights = laws.run(algorithms.load("term", {"t": t}), of, 300).weights
    return [each.loss(split(weights)) for each in of]


def test_a_positive_tilt_serves_the_worst_client_and_a_negative_one_leaves_it_out() -> None:
    robust, plain, fair = (losses(t) for t in (-2.0, 0.0, 2.0))
    assert max(robust) > 1.2 * max(plain) > 1.2 * 1.2 * max(fair)
    assert robust[0] < 0.1 * plain[0]


@pytest.mark.parametrize("t", [-1000.0, 1000.0])
def test_losses_far_apart_overflow_nothing_and_leave_every_client_a_weight(t: float) -> None:
    algorithm = algorithms.load("term", {"t": t})
    reports = [Report(str(loss), 5, {"loss": loss}) for loss in (1e-3, 1e4)]
    scalars = algorithm.advance(Mean({}), reports, {}, {})
    # with equal examples: the largest of t * F, less log(2)
    assert scalars["tilted_loss"] == pytest.approx(1e4 if t > 0 else 1e-3, abs=1e-3)
    weights = [algorithm.weight(report, scalars) for report in reports]
    assert min(weights) > 2**-20
    assert (weights[1] > weights[0]) == (t > 0)


def test_without_a_tilt_it_is_fedavg_exactly() -> None:
    of = laws.clients(steps=(3, 7))
    of[1] = Quadratic(of[1].a, of[1].b, 5, steps=7)
    laws.assert_fedavg(algorithms.load("term", {"t": 0.0}), of)


def test_a_client_sends_its_loss_at_the_global_weights() -> None:
    client = laws.clients(1)[0]
    federation = laws.run(algorithms.load("term"), [client], 1)
    sent, _ = federation.train(client, {})
    expected = 0.5 * (client.a * (federation.weights - client.b) ** 2).sum()
    assert sent.scalars["loss"] == pytest.approx(expected)
    assert np.any(joined(sent.vectors["update"], laws.SIZE) != 0)


def test_blocks_and_the_kind_of_array_do_not_matter() -> None:
    laws.assert_blockwise(algorithms.load("term"))
    laws.assert_same_on_torch(algorithms.load("term"))
