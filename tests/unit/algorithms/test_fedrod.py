"""Fed-RoD against the balanced softmax loss and the sum of two heads' outputs, written out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import algorithms
from algorithms.base import Arrays, Received, State
from runtime.errors import ConfigError

CLASSES = 3
LABELS = np.array([0, 0, 0, 0, 1, 1])
BALANCED = np.array([0, 0, 1, 1, 2, 2])
INPUTS = np.random.default_rng(2).normal(size=(6, 4))
GOT = Received(
    {
        "body": np.array([1.0, -0.5, 2.0, 0.3]),
        "weight": np.random.default_rng(3).normal(size=(CLASSES, 4)),
        "bias": np.array([0.1, 0.2, -0.3]),
    }
)


def softmax(outputs: Any) -> Any:
    powers = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def gradient(w: Arrays, labels: NDArray[Any], extra: Any = 0.0) -> dict[str, Any]:
    """Return the gradient of the mean cross-entropy, with ``extra`` added to the outputs."""
    features = INPUTS * w["body"]
    outputs = features @ w["weight"].T + w["bias"] + extra
    error = (softmax(outputs) - np.eye(CLASSES)[labels]) / len(labels)
    return {
        "body": (error @ w["weight"] * INPUTS).sum(axis=0),
        "weight": error.T @ features,
        "bias": error.sum(axis=0),
    }


@dataclass(frozen=True)
class Softmax:
    """A softmax regression on scaled inputs, the same for every batch."""

    labels: NDArray[Any]
    number: int = 0
    round: int = 1
    num_examples: int = 6
    steps: int = 3
    learning_rate: float = 0.2
    head: frozenset[str] = frozenset({"weight", "bias"})
    norms: frozenset[str] = frozenset()

    def gradient(self, w: Arrays) -> dict[str, Any]:
        return gradient({**GOT.weights, **w}, self.labels)

    def loss(self, w: Arrays) -> float:
        raise NotImplementedError

    def halves(self) -> tuple[Softmax, Softmax]:
        return self, self


def run(client: Softmax, balance: float = 1.0) -> tuple[Arrays, State]:
    algorithm = algorithms.load("fedrod", {"balance": balance})
    w, state = algorithm.start(GOT, {}, client)
    for _ in range(client.steps):
        g, state = algorithm.direction(client, w, GOT, state, client)
        w = {name: w[name] - client.learning_rate * g[name] for name in w}
    sent, state = algorithm.finish(w, GOT, state, client)
    return sent.vectors["update"], state


@pytest.mark.parametrize("balance", [0.5, 1.0])
def test_the_generic_model_is_trained_by_the_balanced_softmax_loss(balance: float) -> None:
    update, _ = run(Softmax(LABELS), balance)
    w = dict(GOT.weights)
    # shares 4/6, 2/6 and, in place of 0, a millionth of 1/3
    extra = balance * np.log([4 / 6, 2 / 6, 1e-6 / 3])
    for _ in range(3):
        g = gradient(w, LABELS, extra)
        w = {name: w[name] - 0.2 * g[name] for name in w}
    for name in w:
        expected = w[name] - GOT.weights[name]
        np.testing.assert_allclose(update[name], expected, rtol=1e-9, atol=1e-13)


def test_the_personal_head_is_trained_by_the_plain_loss_on_both_heads_outputs() -> None:
    client = Softmax(LABELS)
    algorithm = algorithms.load("fedrod")
    w, state = algorithm.start(GOT, {}, client)
    weight, bias = np.zeros((CLASSES, 4)), np.zeros(CLASSES)
    # the generic head's bias during training
    extra = np.log([2, 1, 1e-6])
    for _ in range(3):
        features = INPUTS * w["body"]
        generic, own = features @ w["weight"].T + w["bias"] - extra, features @ weight.T + bias
        error = (softmax(generic + own) - np.eye(CLASSES)[LABELS]) / len(LABELS)
        weight, bias = weight - 0.2 * error.T @ features, bias - 0.2 * error.sum(axis=0)
        g, state = algorithm.direction(client, w, GOT, state, client)
        w = {name: w[name] - 0.2 * g[name] for name in w}
    np.testing.assert_allclose(state["own"]["weight"], weight, rtol=1e-9)
    np.testing.assert_allclose(state["own"]["bias"], bias, rtol=1e-9)
    _, state = algorithm.finish(w, GOT, state, client)
    found = algorithm.personal(GOT, state, client)
    assert found is not None
    np.testing.assert_allclose(found["weight"], GOT.weights["weight"] + weight, rtol=1e-9)
    assert (found["body"] == GOT.weights["body"]).all()


@pytest.mark.parametrize(
    ("labels", "balance"), [(BALANCED, 1.0), (LABELS, 0.0)], ids=["equal shares", "balance 0"]
)
def test_the_generic_model_is_then_fedavgs(labels: NDArray[Any], balance: float) -> None:
    update, _ = run(Softmax(labels), balance)
    w = GOT.weights
    for _ in range(3):
        g = Softmax(labels).gradient(w)
        w = {name: w[name] - 0.2 * g[name] for name in w}
    for name in w:
        assert update[name].tobytes() == (w[name] - GOT.weights[name]).tobytes()


def test_a_personal_head_is_kept_for_the_next_round() -> None:
    _, state = run(Softmax(LABELS))
    _, begun = algorithms.load("fedrod").start(GOT, state, Softmax(LABELS))
    assert begun["own"]["weight"] is state["own"]["weight"]


@dataclass(frozen=True)
class Doubled(Softmax):
    """A loss that is no mean cross-entropy."""

    def gradient(self, w: Arrays) -> dict[str, Any]:
        return {name: 2 * g for name, g in super().gradient(w).items()}


@pytest.mark.parametrize(
    ("client", "said"),
    [
        (replace(Softmax(LABELS), head=frozenset({"weight"})), "one linear layer with a bias"),
        (replace(Softmax(LABELS), head=frozenset({"weight", "bias", "body"})), "one linear layer"),
        (Doubled(LABELS), "mean cross-entropy"),
    ],
)
def test_a_task_that_it_is_not_for_is_refused(client: Softmax, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        algorithms.load("fedrod").start(GOT, {}, client)
