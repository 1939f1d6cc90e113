"""FedBABU: the head stays as it began until a client fine-tunes."""

from __future__ import annotations

import numpy as np

from tests.unit.algorithms.trained import SIZE, clients, personal, trained

HALF = SIZE // 2


def test_the_head_stays_as_it_began_and_the_body_is_fedavgs() -> None:
    of = clients()
    after, plain = trained("fedbabu", {}, of), trained("fedavg", {}, of)
    assert (after.weights[HALF:] == trained("fedbabu", {}, of, rounds=0).weights[HALF:]).all()
    assert after.weights[:HALF].tobytes() == plain.weights[:HALF].tobytes()


def test_a_personal_model_is_fine_tuned_with_its_head() -> None:
    of = clients()
    after = trained("fedbabu", {"fine_tuning_steps": 4}, of)
    for index, client in enumerate(of):
        left = (1 - client.learning_rate * client.a) ** 4
        expected = client.b + left * (after.weights - client.b)
        np.testing.assert_allclose(personal(after, client, index), expected, rtol=1e-12)


def test_without_a_head_it_is_fedavg() -> None:
    of = clients(head=frozenset())
    assert trained("fedbabu", {}, of).weights.tobytes() == (
        trained("fedavg", {}, of).weights.tobytes()
    )
