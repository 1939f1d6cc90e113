"""Per-FedAvg against the exact gradient of ``F(w - alpha F'(w))`` for quadratics."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

import algorithms
from algorithms.base import Received
from tests.federation import Array, Quadratic, joined, split
from tests.unit.algorithms.trained import SIZE, clients, personal, trained

W = np.linspace(-2, 2, SIZE)


@pytest.mark.parametrize(
    ("hessian_step", "power"), [(0.0, 1), (0.01, 2)], ids=["first order", "Hessian-free"]
)
def test_the_direction_is_that_of_the_paper(hessian_step: float, power: int) -> None:
    # F'(w - alpha F') = (1 - alpha a) a (w - b); the second factor is of I - alpha F''
    (client,) = clients(1)
    algorithm = algorithms.load("perfedavg", {"alpha": 0.3, "hessian_step": hessian_step})
    got = Received(split(W))
    g, _ = algorithm.direction(client, got.weights, got, {}, client)
    expected = (1 - 0.3 * client.a) ** power * client.a * (W - client.b)
    np.testing.assert_allclose(joined(g, SIZE), expected, rtol=1e-9)


@dataclass(frozen=True)
class Halved(Quadratic):
    """A batch whose halves have curvatures of their own, a power of ten apart."""

    def halves(self) -> tuple[Halved, Halved]:
        return Halved(self.a * 10, self.b), Halved(self.a, self.b * 10)


def test_its_gradients_are_of_different_examples() -> None:
    batch = Halved(np.full(SIZE, 0.01), np.ones(SIZE))
    got = Received(split(W))

    def found(hessian_step: float) -> Array:
        algorithm = algorithms.load("perfedavg", {"alpha": 0.5, "hessian_step": hessian_step})
        return joined(algorithm.direction(batch, got.weights, got, {}, batch)[0], SIZE)

    # the first half is of a 0.1 and b 1, the second of 0.01 and 10
    moved = W - 0.5 * 0.1 * (W - 1)
    np.testing.assert_allclose(found(0.0), 0.01 * (moved - 10), rtol=1e-12)
    # the second half's halves are of a 0.1 and b 10, and of 0.01 and 100
    outer = 0.1 * (moved - 10)
    np.testing.assert_allclose(found(0.1), outer - 0.5 * 0.01 * outer, rtol=1e-9)


def test_without_the_inner_step_it_is_fedavg() -> None:
    of = clients()
    after = trained("perfedavg", {"alpha": 0.0}, of)
    assert after.weights.tobytes() == trained("fedavg", {}, of).weights.tobytes()
    assert after.algorithm.personal(after.received(), {}, of[0]) is None


def test_the_global_model_is_the_one_from_which_a_step_does_best() -> None:
    of = clients(steps=1, learning_rate=0.5)
    alpha = 0.3
    after = trained("perfedavg", {"alpha": alpha, "hessian_step": 0.01}, of, rounds=200)
    pull = [client.num_examples * (1 - alpha * client.a) ** 2 * client.a for client in of]
    best = sum(p * client.b for p, client in zip(pull, of, strict=True)) / sum(pull)
    np.testing.assert_allclose(after.weights, best, rtol=1e-6)
    plain = trained("fedavg", {}, of, rounds=200).weights
    assert np.abs(plain - best).max() > 0.05
    for index, client in enumerate(of):
        expected = best - alpha * client.a * (best - client.b)
        np.testing.assert_allclose(personal(after, client, index), expected, rtol=1e-6)
