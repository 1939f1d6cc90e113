"""FedRep on a loss whose head and representation depend on one another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import algorithms
from algorithms.base import Received
from tests.federation import Quadratic
from tests.unit.algorithms.trained import clients, trained


@dataclass(frozen=True)
class Product(Quadratic):
    """The loss ``1/2 (body * head - 1)^2``: each part's gradient is of the other's value."""

    def gradient(self, w: Any) -> dict[str, Any]:
        error = w["body"] * w["head"] - 1
        return {"body": error * w["head"], "head": error * w["body"]}


def by_hand(head_steps: int, steps: int, rate: float = 0.1) -> tuple[float, float]:
    body, head = 2.0, 3.0
    for number in range(steps):
        error = body * head - 1
        if number < head_steps:
            head -= rate * error * body
        else:
            body -= rate * error * head
    return body, head


@pytest.mark.parametrize(
    ("share", "steps", "head_steps"), [(0.5, 4, 2), (0.75, 4, 3), (0.0, 4, 0), (0.99, 4, 3)]
)
def test_the_head_is_trained_first_and_then_the_representation(
    share: float, steps: int, head_steps: int
) -> None:
    algorithm = algorithms.load("fedrep", {"head_share": share})
    got = Received({"body": np.array([2.0]), "head": np.array([3.0])})
    local = Product(np.ones(1), np.ones(1), steps=steps)
    w, state = algorithm.start(got, {}, local)
    for number in range(steps):
        batch = Product(np.ones(1), np.ones(1), number=number)
        g, state = algorithm.direction(batch, w, got, state, local)
        w = {name: w[name] - 0.1 * g[name] if name in g else w[name] for name in w}
    body, head = by_hand(head_steps, steps)
    np.testing.assert_allclose([w["body"][0], w["head"][0]], [body, head], rtol=1e-12)
    sent, state = algorithm.finish(w, got, state, local)
    np.testing.assert_allclose(sent.vectors["update"]["body"], body - 2, rtol=1e-12)
    assert list(sent.vectors["update"]) == ["body"]
    assert state["private"]["head"][0] == w["head"][0]


def test_without_a_head_and_steps_for_it_it_is_fedavg() -> None:
    of = clients(head=frozenset())
    after = trained("fedrep", {"head_share": 0.0}, of)
    assert after.weights.tobytes() == trained("fedavg", {}, of).weights.tobytes()


def test_the_representation_of_separable_losses_is_trained_for_its_share_of_the_steps() -> None:
    of = clients(steps=6)
    after = trained("fedrep", {"head_share": 0.5}, of)
    plain = trained("fedavg", {}, clients(steps=3))
    assert after.weights[:3].tobytes() == plain.weights[:3].tobytes()
