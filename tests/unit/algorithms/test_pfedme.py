"""pFedMe against the closed form of a quadratic's Moreau envelope."""

from __future__ import annotations

import numpy as np
import pytest

import algorithms
from algorithms.base import Received
from tests.federation import joined, split
from tests.unit.algorithms.trained import SIZE, clients, personal, trained


@pytest.mark.parametrize("lam", [1.0, 15.0])
def test_the_direction_is_the_gradient_of_the_moreau_envelope(lam: float) -> None:
    (client,) = clients(1)
    steps = {"personal_steps": 300, "personal_learning_rate": 0.05}
    algorithm = algorithms.load("pfedme", {"lam": lam, **steps})
    w = np.linspace(-2, 2, SIZE)
    got = Received(split(w))
    g, _ = algorithm.direction(client, got.weights, got, {}, client)
    # v = (a b + lam w) / (a + lam), so lam (w - v) is this
    expected = lam * client.a / (client.a + lam) * (w - client.b)
    np.testing.assert_allclose(joined(g, SIZE), expected, rtol=1e-9)


def test_each_local_step_solves_for_a_personal_model_that_is_kept() -> None:
    (client,) = clients(1, steps=3, learning_rate=0.02)
    after = trained("pfedme", {"lam": 4.0, "personal_steps": 2}, [client], rounds=2)
    w = trained("pfedme", {}, [client], rounds=0).weights
    v = w
    for _ in range(6):
        v = w
        for _ in range(2):
            v = v - 0.05 * (client.a * (v - client.b) + 4 * (v - w))
        w = w - 0.02 * 4 * (w - v)
    np.testing.assert_allclose(after.weights, w, rtol=1e-12)
    np.testing.assert_allclose(personal(after, client, 0), v, rtol=1e-12)


def test_personal_models_are_nearer_their_optima_and_the_global_one_reaches_its_own() -> None:
    of = clients(steps=1, learning_rate=0.4)
    settings = {"lam": 2.0, "personal_steps": 25, "personal_learning_rate": 0.3}
    after = trained("pfedme", settings, of, rounds=120)
    # the mean of the envelopes' gradients is 0
    pull = [client.num_examples * 2 * client.a / (client.a + 2) for client in of]
    best = sum(p * client.b for p, client in zip(pull, of, strict=True)) / sum(pull)
    np.testing.assert_allclose(after.weights, best, rtol=1e-6)
    for index, client in enumerate(of):
        own = personal(after, client, index)
        assert client.loss(split(own)) < client.loss(split(after.weights))


def test_one_personal_step_of_rate_one_over_lam_is_fedavg() -> None:
    # v is w - g / lam, so lam (w - v) is g
    of = clients()
    one = {"lam": 8.0, "personal_steps": 1, "personal_learning_rate": 0.125}
    found = trained("pfedme", one, of).weights
    np.testing.assert_allclose(found, trained("fedavg", {}, of).weights, rtol=1e-12)


def test_a_learning_rate_that_steps_beyond_the_personal_model_is_warned_of() -> None:
    algorithm = algorithms.load("pfedme", {"lam": 20.0})
    assert "learning_rate=0.05 or less" in algorithm.advice({"learning_rate": 0.1})
    assert algorithm.advice({"learning_rate": 0.05}) == ""
