"""Ditto against Algorithm 1 of the paper on flat vectors."""

from __future__ import annotations

import numpy as np
import pytest

from tests.federation import Array, Quadratic
from tests.unit.algorithms.trained import clients, personal, trained


def by_paper(of: list[Quadratic], w: Array, lam: float, rounds: int) -> list[Array]:
    total = sum(client.num_examples for client in of)
    own = [w.copy() for _ in of]
    for _ in range(rounds):
        mean = np.zeros(len(w))
        for index, client in enumerate(of):
            local = w.copy()
            for _ in range(client.steps):
                local = local - client.learning_rate * client.a * (local - client.b)
                gradient = client.a * (own[index] - client.b) + lam * (own[index] - w)
                own[index] = own[index] - client.learning_rate * gradient
            mean += client.num_examples / total * (local - w)
        w = w + mean
    return [w, *own]


@pytest.mark.parametrize("lam", [0.0, 0.1, 2.0])
def test_personal_models_are_those_of_the_paper(lam: float) -> None:
    of = clients()
    after = trained("ditto", {"lam": lam}, of)
    begin = trained("ditto", {}, of, rounds=0).weights
    expected, *own = by_paper(of, begin, lam, rounds=3)
    np.testing.assert_allclose(after.weights, expected, rtol=1e-12)
    for index, client in enumerate(of):
        np.testing.assert_allclose(personal(after, client, index), own[index], rtol=1e-12)


@pytest.mark.parametrize("lam", [0.0, 1.0])
def test_the_global_model_is_fedavgs_whatever_the_pull(lam: float) -> None:
    of = clients()
    after = trained("ditto", {"lam": lam}, of)
    assert after.weights.tobytes() == trained("fedavg", {}, of).weights.tobytes()


@pytest.mark.parametrize("lam", [0.5, 4.0])
def test_a_personal_model_ends_between_its_own_optimum_and_the_global_model(lam: float) -> None:
    of = clients()
    after = trained("ditto", {"lam": lam}, of, rounds=200)
    for index, client in enumerate(of):
        # where a (v - b) + lam (v - w) is 0
        best = (client.a * client.b + lam * after.weights) / (client.a + lam)
        found = personal(after, client, index)
        np.testing.assert_allclose(found, best, rtol=1e-6)
        assert np.abs(found - client.b).sum() < np.abs(after.weights - client.b).sum()
