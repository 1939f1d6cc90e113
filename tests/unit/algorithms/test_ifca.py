"""IFCA against Algorithm 1 of the paper, and on clusters that are known."""

from __future__ import annotations

import numpy as np
import pytest

import algorithms
from algorithms.base import BLOCK, Mean, initial
from tests.federation import Array, Quadratic, split
from tests.unit.algorithms.trained import SIZE, clients, personal, trained


def by_paper(of: list[Quadratic], models: list[Array], rounds: int) -> list[Array]:
    for _ in range(rounds):
        groups: list[list[tuple[int, Array]]] = [[] for _ in models]
        for client in of:
            losses = [(client.a * (w - client.b) ** 2).sum() for w in models]
            chosen = int(np.argmin(losses))
            w = models[chosen]
            for _ in range(client.steps):
                w = w - client.learning_rate * client.a * (w - client.b)
            groups[chosen].append((client.num_examples, w))
        models = [
            np.average([w for _, w in group], axis=0, weights=[n for n, _ in group])
            if group
            else before
            for group, before in zip(groups, models, strict=True)
        ]
    return models


@pytest.mark.parametrize("clusters", [2, 3])
def test_models_are_those_of_the_paper(clusters: int) -> None:
    of = clients(5)
    settings = {"clusters": clusters, "spread": 1.0}
    begin = trained("ifca", settings, of, rounds=0)
    models = by_paper(of, [begin.vectors[name] for name in begin.algorithm.sends], 4)
    after = trained("ifca", settings, of, rounds=4)
    for name, expected in zip(after.algorithm.sends, models, strict=True):
        np.testing.assert_allclose(after.vectors[name], expected, rtol=1e-12)
    np.testing.assert_allclose(after.weights, sum(models) / clusters, rtol=1e-12)


def test_one_cluster_is_fedavg() -> None:
    of = clients()
    after = trained("ifca", {"clusters": 1}, of)
    assert after.weights.tobytes() == trained("fedavg", {}, of).weights.tobytes()


def test_clusters_are_recovered_and_each_reaches_its_own_optimum() -> None:
    random = np.random.default_rng(11)
    optimum = random.normal(0, 3, SIZE)
    signs = [1, -1, 1, -1, -1, 1]
    of = [Quadratic(random.uniform(0.5, 2, SIZE), sign * optimum) for sign in signs]
    after = trained("ifca", {}, of, rounds=60)
    chosen = [int(after.states[index]["chosen"]["value"]) for index in range(len(of))]
    assert chosen in ([1 - (sign > 0) for sign in signs], [int(sign > 0) for sign in signs])
    shared = trained("fedavg", {}, of, rounds=60).weights
    for index, client in enumerate(of):
        np.testing.assert_allclose(personal(after, client, index), client.b, rtol=1e-6)
        assert client.loss(split(shared)) > 1


def test_a_client_sends_the_change_of_one_model_and_others_stay() -> None:
    (client,) = clients(1)
    before = trained("ifca", {"clusters": 3}, [client], rounds=0)
    sent, state = before.train(client, {})
    (name,) = sent.vectors
    assert name == f"model_{int(state['chosen']['value'])}"
    after = trained("ifca", {"clusters": 3}, [client], rounds=1)
    for other in set(after.algorithm.sends) - {name}:
        assert (after.vectors[other] == before.vectors[other]).all()


def test_first_models_are_version_0_with_noise_on_all_but_the_first() -> None:
    algorithm = algorithms.load("ifca", {"clusters": 3, "spread": 0.5})
    weights = np.linspace(-1, 1, BLOCK + 10, dtype=np.float32)
    found = initial(algorithm, weights, 5)
    assert (found["model_0"] == weights).all()
    assert {array.dtype for array in found.values()} == {np.dtype(np.float32)}
    one, two = (found[name].astype(float) - weights for name in ("model_1", "model_2"))
    assert one.std() == pytest.approx(0.5, rel=0.01)
    assert two.std() == pytest.approx(0.5, rel=0.01)
    # no two of them, and no two blocks, have the same noise
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.02
    assert np.abs(one[BLOCK:] - one[:10]).max() > 0.1
    again, other = initial(algorithm, weights, 5), initial(algorithm, weights, 6)
    assert again["model_1"].tobytes() == found["model_1"].tobytes()
    assert other["model_1"].tobytes() != found["model_1"].tobytes()


def test_the_server_may_cut_its_vectors_anywhere() -> None:
    algorithm = algorithms.load("ifca", {"clusters": 2})
    random = np.random.default_rng(0)
    w, state, sent = (random.normal(size=9).astype(np.float32) for _ in range(3))
    models = {"model_0": w, "model_1": state}
    means = {"model_0": sent, "model_1": w}
    whole, kept = algorithm.aggregate(w, Mean(means), models, {})
    parts = [
        algorithm.aggregate(
            w[at],
            Mean({k: v[at] for k, v in means.items()}),
            {k: models[k][at] for k in models},
            {},
        )
        for at in (slice(0, 4), slice(4, 9))
    ]
    assert np.concatenate([part for part, _ in parts]).tobytes() == whole.tobytes()
    assert np.concatenate([p["model_1"] for _, p in parts]).tobytes() == kept["model_1"].tobytes()
