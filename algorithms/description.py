"""What listings say of an algorithm; its costs are seen by running it on a small problem."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, fields
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np

from algorithms.base import Algorithm, Arrays, Received, State, initial
from algorithms.registry import load

_STEPS = 2


@dataclass(frozen=True)
class Costs:
    """Vectors as long as the model, and passes over data.

    Attributes:
        down: vectors that a client downloads beside the model.
        up: vectors that it may upload, at most those that one round of it sent.
        device: vectors that it keeps from round to round.
        server: vectors that the server keeps beside the model.
        gradients: gradients for each local step; plain training takes 1.
        passes: passes over all of the client's data in a round beside its training.
    """

    down: int
    up: int
    device: int
    server: int
    gradients: int
    passes: int


@dataclass(frozen=True)
class Setting:
    """A hyper-parameter: its default, and what it may be, such as "at least 0"."""

    name: str
    default: Any
    bounds: str


@dataclass(frozen=True)
class Explanation:
    """What there is to say of anything that a run names: an algorithm, a rule, a transform."""

    name: str
    summary: str
    details: str
    source: str
    settings: tuple[Setting, ...]


@dataclass(frozen=True)
class Description:
    """What there is to say of an algorithm.

    Attributes:
        summary: one sentence.
        details: more about it, "" for nothing.
        source: its paper, and what is particular to this form of it.
        engines: those that can train with it.
        needs: what it needs of a task.
        needs_updates: whether the server keeps every update until a round's end.
    """

    name: str
    family: str
    summary: str
    details: str
    source: str
    engines: tuple[str, ...]
    needs: tuple[str, ...]
    needs_updates: bool
    settings: tuple[Setting, ...]
    costs: Costs


def describe(name: str) -> Description:
    """Return the description of the algorithm ``name``; raises ConfigError for one not listed."""
    algorithm = load(name)
    found = explain(name, algorithm)
    return Description(
        name=name,
        family=algorithm.family,
        summary=found.summary,
        details=found.details,
        source=found.source,
        engines=("torch",) if "loss" in algorithm.needs else ("numpy", "torch"),
        needs=algorithm.needs,
        needs_updates=algorithm.needs_updates,
        settings=found.settings,
        costs=costs_of(algorithm),
    )


def explain(name: str, chosen: Any) -> Explanation:
    """Return what the docstrings and the fields of a dataclass's object say of it."""
    kind = type(chosen)
    summary, _, details = (inspect.getdoc(kind) or "").partition("\n\n")
    hints = get_type_hints(kind, include_extras=True)
    return Explanation(
        name,
        " ".join(summary.split()),
        details.strip(),
        inspect.getdoc(inspect.getmodule(kind)) or "",
        tuple(
            Setting(each.name, getattr(chosen, each.name), _bounds_of(hints[each.name]))
            for each in fields(chosen)
        ),
    )


def _bounds_of(hint: Any) -> str:
    inner, *bounds = get_args(hint) or (hint,)
    if get_origin(inner) is dict:
        return f"by name, each {_bounds_of(get_args(inner)[1])}"
    return " and ".join(str(each) for each in bounds)


def costs_of(algorithm: Algorithm) -> Costs:
    """Return the costs, as a client's second round has them."""
    weights = np.linspace(-1.0, 1.0, 11).astype(np.float32)
    server = initial(algorithm, weights, 0)
    got = Received(
        _named(weights),
        {name: _named(server[name]) for name in algorithm.broadcasts if name in server},
    )
    state: State = {}
    for _ in range(2):
        local, batch = _Data(), _Data()
        w, state = algorithm.start(got, state, local)
        for _ in range(_STEPS):
            direction, state = algorithm.direction(batch, w, got, state, local)
            w = {name: w[name] - 0.1 * direction.get(name, 0 * w[name]) for name in w}
        sent, state = algorithm.finish(w, got, state, local)
    return Costs(
        down=len(server) if got.vectors else 0,
        up=len(sent.vectors),
        device=sum(any(array.size > 1 for array in kept.values()) for kept in state.values()),
        server=len(server),
        gradients=-(-batch.passes // _STEPS),
        passes=local.passes,
    )


def _named(vector: Any) -> dict[str, Any]:
    return {"scale": vector[:2], "head.weight": vector[2:8].reshape(3, 2), "head.bias": vector[8:]}


class _Data:
    """Four examples for a softmax regression on scaled inputs: a client's batch, or its data."""

    round = 2
    number = 0
    num_examples = 4
    steps = _STEPS
    learning_rate = 0.1
    seed = 0
    width = 1.0
    head = frozenset({"head.weight", "head.bias"})
    norms = frozenset({"scale"})
    adapters = frozenset({"head.weight", "head.bias"})

    def __init__(self) -> None:
        self.passes = 0

    def gradient(self, w: Arrays) -> dict[str, Any]:
        x, probabilities, right = self._pass(w)
        error = (probabilities - right) / len(x)
        return {
            "scale": ((error @ w["head.weight"]) * x).sum(0),
            "head.weight": error.T @ (x * w["scale"]),
            "head.bias": error.sum(0),
        }

    def loss(self, w: Arrays) -> float:
        _, probabilities, right = self._pass(w)
        return float(-np.log((probabilities * right).sum(1)).mean())

    def halves(self) -> tuple[_Data, _Data]:
        return self, self

    def _pass(self, w: Arrays) -> tuple[Any, Any, Any]:
        """Return the inputs, the probabilities of the classes, and the right ones."""
        self.passes += 1
        x = np.array([[1, 0], [0, 1], [1, 1], [2, 1]], np.float32)
        exps = np.exp((x * w["scale"]) @ w["head.weight"].T + w["head.bias"])
        return x, exps / exps.sum(1, keepdims=True), np.eye(3, dtype=np.float32)[[0, 1, 2, 1]]
