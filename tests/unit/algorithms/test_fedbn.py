"""FedBN against gradient descent of each part written out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tests.unit.algorithms.trained import SIZE, clients, personal, trained

HALF = SIZE // 2


def test_normalisation_layers_stay_with_their_client_and_all_else_is_averaged() -> None:
    of = clients(norms=frozenset({"body"}))
    after = trained("fedbn", {}, of, rounds=4)
    begin = trained("fedbn", {}, of, rounds=0).weights
    shared, own = begin.copy(), [begin.copy() for _ in of]
    for _ in range(4):
        mean = np.zeros(HALF)
        for index, client in enumerate(of):
            w = np.concatenate([own[index][:HALF], shared[HALF:]])
            for _ in range(client.steps):
                w = w - client.learning_rate * client.a * (w - client.b)
            own[index] = w
            mean += client.num_examples / 6 * (w[HALF:] - shared[HALF:])
        shared[HALF:] += mean
    np.testing.assert_allclose(after.weights, shared, rtol=1e-12)
    assert (after.weights[:HALF] == begin[:HALF]).all()
    for index, client in enumerate(of):
        expected = np.concatenate([own[index][:HALF], shared[HALF:]])
        np.testing.assert_allclose(personal(after, client, index), expected, rtol=1e-12)


def test_nothing_of_a_normalisation_layer_is_sent() -> None:
    (client,) = clients(1, norms=frozenset({"body"}))
    sent, state = trained("fedbn", {}, [client], rounds=1).train(client, {})
    assert list(sent.vectors["update"]) == ["head"]
    assert list(state["private"]) == ["body"]


def test_without_normalisation_layers_it_is_fedavg() -> None:
    of = [replace(client, norms=frozenset()) for client in clients()]
    after = trained("fedbn", {}, of)
    assert after.weights.tobytes() == trained("fedavg", {}, of).weights.tobytes()
    assert after.states == {0: {}, 1: {}, 2: {}}


def test_a_client_that_has_not_trained_predicts_with_the_global_model() -> None:
    of = clients()
    after = trained("fedbn", {}, of)
    assert (personal(after, of[0], 9) == after.weights).all()
