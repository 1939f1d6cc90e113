"""Local fine-tuning against the closed form of gradient descent on a quadratic."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.algorithms.trained import clients, personal, trained


@pytest.mark.parametrize("steps", [1, 7])
def test_a_personal_model_is_some_steps_from_the_global_one(steps: int) -> None:
    of = clients()
    after = trained("finetune", {"fine_tuning_steps": steps}, of)
    for index, client in enumerate(of):
        left = (1 - client.learning_rate * client.a) ** steps
        expected = client.b + left * (after.weights - client.b)
        np.testing.assert_allclose(personal(after, client, index), expected, rtol=1e-12)


def test_the_global_model_is_fedavgs_and_keeps_no_state() -> None:
    of = clients()
    after = trained("finetune", {}, of)
    assert after.weights.tobytes() == trained("fedavg", {}, of).weights.tobytes()
    assert after.states == {0: {}, 1: {}, 2: {}}


def test_without_steps_the_personal_model_is_the_global_one() -> None:
    of = clients()
    after = trained("finetune", {"fine_tuning_steps": 0}, of)
    assert after.algorithm.personal(after.received(), {}, of[0]) is None


def test_personal_models_fit_their_clients_better() -> None:
    of = clients()
    after = trained("finetune", {}, of, rounds=20)
    for index, client in enumerate(of):
        own, shared = personal(after, client, index) - client.b, after.weights - client.b
        assert (client.a * own**2).sum() < 0.5 * (client.a * shared**2).sum()
