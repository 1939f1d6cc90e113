"""LG-FedAvg against gradient descent of each part written out."""

from __future__ import annotations

import numpy as np

from tests.unit.algorithms.trained import SIZE, clients, personal, trained

HALF = SIZE // 2


def test_each_client_goes_on_training_a_body_of_its_own() -> None:
    of = clients()
    after = trained("lgfedavg", {}, of, rounds=4)
    for index, client in enumerate(of):
        body = trained("lgfedavg", {}, of, rounds=0).weights[:HALF]
        for _ in range(4 * client.steps):
            body = body - client.learning_rate * client.a[:HALF] * (body - client.b[:HALF])
        found = personal(after, client, index)
        np.testing.assert_allclose(found[:HALF], body, rtol=1e-12)
        assert (found[HALF:] == after.weights[HALF:]).all()


def test_the_head_is_that_of_fedavg_and_alone_is_sent() -> None:
    of = clients()
    plain, after = trained("fedavg", {}, of), trained("lgfedavg", {}, of)
    assert after.weights[HALF:].tobytes() == plain.weights[HALF:].tobytes()
    sent, _ = after.train(of[0], after.states[0])
    assert list(sent.vectors["update"]) == ["head"]


def test_with_nothing_but_a_head_it_is_fedavg() -> None:
    of = clients(head=frozenset({"body", "head"}))
    assert trained("lgfedavg", {}, of).weights.tobytes() == (
        trained("fedavg", {}, of).weights.tobytes()
    )
