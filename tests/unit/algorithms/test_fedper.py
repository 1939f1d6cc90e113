"""FedPer against gradient descent of each part written out."""

from __future__ import annotations

import numpy as np

from tests.unit.algorithms.trained import SIZE, clients, personal, trained

HALF = SIZE // 2


def test_each_client_goes_on_training_a_head_of_its_own() -> None:
    of = clients()
    after = trained("fedper", {}, of, rounds=4)
    for index, client in enumerate(of):
        # the coordinates of these losses do not mix: the head is trained as if alone
        head = trained("fedper", {}, of, rounds=0).weights[HALF:]
        for _ in range(4 * client.steps):
            head = head - client.learning_rate * client.a[HALF:] * (head - client.b[HALF:])
        found = personal(after, client, index)
        np.testing.assert_allclose(found[HALF:], head, rtol=1e-12)
        assert (found[:HALF] == after.weights[:HALF]).all()


def test_the_layers_below_are_those_of_fedavg() -> None:
    of = clients()
    plain, after = trained("fedavg", {}, of), trained("fedper", {}, of)
    assert after.weights[:HALF].tobytes() == plain.weights[:HALF].tobytes()
    assert (after.weights[HALF:] == trained("fedper", {}, of, rounds=0).weights[HALF:]).all()


def test_nothing_of_the_head_is_sent() -> None:
    (client,) = clients(1)
    sent, _ = trained("fedper", {}, [client], rounds=1).train(client, {})
    assert list(sent.vectors["update"]) == ["body"]


def test_without_a_head_it_is_fedavg() -> None:
    of = clients(head=frozenset())
    assert trained("fedper", {}, of).weights.tobytes() == (
        trained("fedavg", {}, of).weights.tobytes()
    )
