"""FedALA against equations 4 to 6 of the paper on flat vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.federation import Array, Quadratic
from tests.unit.algorithms.trained import SIZE, clients, personal, trained

HALF = SIZE // 2


def mixed(
    client: Quadratic, own: Array, shared: Array, mixing: Array, steps: int
) -> tuple[Array, Array]:
    a, b = client.a[HALF:], client.b[HALF:]
    for _ in range(steps):
        head = own + (shared - own) * mixing
        mixing = np.minimum(1, np.maximum(0, mixing - 0.2 * a * (head - b) * (shared - own)))
    return own + (shared - own) * mixing, mixing


def by_paper(of: list[Quadratic], w: Array, rounds: int) -> tuple[Array, list[Array]]:
    total = sum(client.num_examples for client in of)
    own: list[Array | None] = [None for _ in of]
    mixing: list[Array | None] = [None for _ in of]

    def begun(index: int, client: Quadratic) -> Array:
        before, shared = own[index], w[HALF:]
        if before is None:
            return w
        weights = mixing[index]
        steps = 4 if weights is None else 2
        weights = np.ones(HALF) if weights is None else weights
        head, mixing[index] = mixed(client, before, shared, weights, steps)
        return np.concatenate([w[:HALF], head])

    for _ in range(rounds):
        mean = np.zeros(SIZE)
        for index, client in enumerate(of):
            local = begun(index, client)
            for _ in range(client.steps):
                local = local - client.learning_rate * client.a * (local - client.b)
            own[index] = local[HALF:]
            mean += client.num_examples / total * (local - w)
        w = w + mean
    return w, [begun(index, client) for index, client in enumerate(of)]


def test_the_heads_are_mixed_as_in_the_paper() -> None:
    of = clients()
    settings = {"mixing_rate": 0.2, "mixing_steps": 2, "first_mixing_steps": 4}
    after = trained("fedala", settings, of, rounds=4)
    begin = trained("fedala", {}, of, rounds=0).weights
    expected, own = by_paper(of, begin, 4)
    np.testing.assert_allclose(after.weights, expected, rtol=1e-12)
    between = 0
    for index, client in enumerate(of):
        np.testing.assert_allclose(personal(after, client, index), own[index], rtol=1e-12)
        weights: Any = after.states[index]["mixing"]["head"]
        assert ((weights >= 0) & (weights <= 1)).all()
        between += int(((weights > 0) & (weights < 1)).sum())
    assert between


@pytest.mark.parametrize(
    "settings", [{"mixing_rate": 0.0}, {"mixing_steps": 0, "first_mixing_steps": 0}]
)
def test_without_mixing_it_is_fedavg(settings: dict[str, Any]) -> None:
    of = clients()
    after = trained("fedala", settings, of)
    assert after.weights.tobytes() == trained("fedavg", {}, of).weights.tobytes()
    assert (personal(after, of[0], 0) == after.weights).all()


def test_mixed_heads_fit_their_clients_better_than_the_global_one() -> None:
    of = clients()
    after = trained("fedala", {}, of, rounds=10)
    for index, client in enumerate(of):
        own, shared = personal(after, client, index) - client.b, after.weights - client.b
        assert (client.a * own**2)[HALF:].sum() < 0.5 * (client.a * shared**2)[HALF:].sum()
