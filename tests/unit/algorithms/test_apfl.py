"""APFL against Algorithm 1 of the paper on flat vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.federation import Array, Quadratic
from tests.unit.algorithms.trained import clients, personal, trained


def by_paper(
    of: list[Quadratic], w: Array, rounds: int, alpha: float, adaptive: bool
) -> tuple[Array, list[Array], list[float]]:
    total = sum(client.num_examples for client in of)
    own, alphas = [w.copy() for _ in of], [alpha for _ in of]
    for _ in range(rounds):
        mean = np.zeros(len(w))
        for i, client in enumerate(of):
            local = w.copy()
            for number in range(client.steps):
                mixed = alphas[i] * own[i] + (1 - alphas[i]) * local
                gradient = client.a * (mixed - client.b)
                slope = float((own[i] - local) @ gradient)
                own[i] = own[i] - client.learning_rate * alphas[i] * gradient
                local = local - client.learning_rate * client.a * (local - client.b)
                if adaptive and number == 0:
                    alphas[i] = min(1.0, max(0.0, alphas[i] - client.learning_rate * slope))
            mean += client.num_examples / total * (local - w)
        w = w + mean
    return w, [a * v + (1 - a) * w for a, v in zip(alphas, own, strict=True)], alphas


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("alpha", [0.25, 0.75])
def test_mixtures_are_those_of_the_paper(alpha: float, adaptive: bool) -> None:
    of = clients(learning_rate=0.01)
    after = trained("apfl", {"alpha": alpha, "adaptive": adaptive}, of)
    begin = trained("apfl", {}, of, rounds=0).weights
    expected, mixtures, alphas = by_paper(of, begin, 3, alpha, adaptive)
    np.testing.assert_allclose(after.weights, expected, rtol=1e-12)
    for index, client in enumerate(of):
        np.testing.assert_allclose(personal(after, client, index), mixtures[index], rtol=1e-12)
        if adaptive:
            assert alphas[index] not in {0.0, alpha, 1.0}
            found: Any = after.states[index]["alpha"]["value"]
            np.testing.assert_allclose(found, alphas[index], rtol=1e-12)


@pytest.mark.parametrize("settings", [{}, {"alpha": 0.0}, {"alpha": 1.0, "adaptive": False}])
def test_the_global_model_is_fedavgs(settings: dict[str, Any]) -> None:
    of = clients()
    after = trained("apfl", settings, of)
    assert after.weights.tobytes() == trained("fedavg", {}, of).weights.tobytes()


def test_a_mixture_of_nothing_of_its_own_is_the_global_model() -> None:
    of = clients()
    after = trained("apfl", {"alpha": 0.0, "adaptive": False}, of)
    assert (personal(after, of[1], 1) == after.weights).all()


def test_all_of_its_own_is_training_alone() -> None:
    of = clients()
    after = trained("apfl", {"alpha": 1.0, "adaptive": False}, of)
    w = trained("apfl", {}, of, rounds=0).weights
    for _ in range(3 * of[1].steps):
        w = w - of[1].learning_rate * of[1].a * (w - of[1].b)
    np.testing.assert_allclose(personal(after, of[1], 1), w, rtol=1e-12)
