"""Small federations of quadratic losses, and laws that the tests of several algorithms ask for."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import algorithms
from algorithms.base import Algorithm, Arrays, Flat, Mean, Received, Sent
from tests.federation import Array, Federation, Quadratic, joined, split

SIZE = 6


def random(seed: int, size: int = SIZE) -> Array:
    return np.random.default_rng(seed).standard_normal(size)


def clients(count: int = 3, *, steps: Sequence[int] = (5,), **settings: Any) -> list[Quadratic]:
    """Return clients whose losses differ in curvature and in their optimum."""
    return [
        Quadratic(
            0.5 + np.abs(random(index)),
            2 * random(100 + index),
            steps=steps[index % len(steps)],
            **settings,
        )
        for index in range(count)
    ]


def optimum(of: Sequence[Quadratic]) -> Array:
    """Return where the mean loss, weighted by examples, is least."""
    a = sum(each.num_examples * each.a for each in of)
    return np.asarray(sum(each.num_examples * each.a * each.b for each in of) / a)


def run(
    algorithm: Algorithm, of: Sequence[Quadratic], rounds: int, cohort: int | None = None
) -> Federation:
    """Return a federation after some rounds of all clients, or of ``cohort`` at a time in turn."""
    federation = Federation(algorithm, np.zeros(SIZE))
    for number in range(rounds):
        first = number * (cohort or 0)
        count = cohort or len(of)
        federation.run_round(of, [(first + index) % len(of) for index in range(count)])
    return federation


def server_rounds(algorithm: Algorithm, updates: Sequence[Flat], start: Flat) -> list[Flat]:
    """Return the global weights after each of these mean updates."""
    weights, state, found = start, algorithm.init(start, 0, 1), []
    for update in updates:
        weights, state = algorithm.aggregate(weights, Mean({"update": update}), state, {})
        found.append(weights)
    return found


def assert_fedavg(algorithm: Algorithm, of: Sequence[Quadratic], rounds: int = 3) -> None:
    """Assert that the weights are those of federated averaging, bit for bit."""
    found, expected = (run(each, of, rounds) for each in (algorithm, algorithms.load("fedavg")))
    assert found.weights.tobytes() == expected.weights.tobytes()


def assert_blockwise(algorithm: Algorithm, scalars: Mapping[str, float] | None = None) -> None:
    """Assert that blocks of any size give the whole vector's result, and that inputs stay."""
    size = 7
    names = {*algorithm.sends, *algorithm.init(random(0, size), 0, 1)}
    given = {name: np.abs(random(index, size)) for index, name in enumerate(sorted(names))}
    weights = random(50, size)
    for array in (weights, *given.values()):
        array.flags.writeable = False
    numbers = dict.fromkeys(algorithm.reports, 2.0)

    def after(part: slice) -> list[Flat]:
        vectors = {name: given[name][part] for name in algorithm.sends}
        state = {name: given[name][part] for name in algorithm.init(weights, 0, 1)}
        mean = Mean(vectors, numbers, 2, 3)
        found, kept = algorithm.aggregate(weights[part], mean, state, scalars or {})
        assert set(kept) == set(state)
        return [found, *(kept[name] for name in sorted(kept))]

    parts = [after(slice(0, 2)), after(slice(2, 3)), after(slice(3, size))]
    for whole, *pieces in zip(after(slice(0, size)), *parts, strict=True):
        assert whole.tobytes() == np.concatenate(pieces).tobytes()


def assert_statistics_apart(algorithm: Algorithm) -> None:
    """Assert that the change of a running mean is sent as it is and counts in no scalar."""
    client, found = clients(1)[0], list[Sent]()
    for before, after in (({"mean": np.zeros(1)}, {"mean": np.full(1, 9.0)}), ({}, {})):
        got = Received({**split(random(5)), **before})
        w, state = algorithm.start(got, {}, client)
        g, state = algorithm.direction(client, w, got, state, client)
        w = {**w, **{name: w[name] - 0.1 * g[name] for name in g}, **after}
        sent, kept = algorithm.finish(w, got, state, client)
        assert kept == {}
        found.append(sent)
    updates = [dict(sent.vectors["update"]) for sent in found]
    assert updates[0].pop("mean").tolist() == [9.0]
    assert {n: a.tolist() for n, a in updates[0].items()} == {
        n: a.tolist() for n, a in updates[1].items()
    }
    assert found[0].scalars == found[1].scalars


@dataclass(frozen=True)
class Tensors(Quadratic):
    """A quadratic loss for torch tensors."""

    def gradient(self, w: Arrays) -> dict[str, Any]:
        return split(torch.from_numpy(self.a * (joined(w, len(self.a)) - self.b)))

    def halves(self) -> tuple[Quadratic, Quadratic]:
        return self, self


def assert_same_on_torch(algorithm: Algorithm) -> None:
    """Assert that a client sends the same of torch tensors as of numpy arrays; inputs stay."""

    def sent(kind: type[Quadratic], make: Callable[[Array], Any]) -> list[dict[str, Any]]:
        client = kind(1 + np.abs(random(0)), random(1), steps=2)
        parts = ({**split(make(random(seed))), "mean": make(random(seed, 2))} for seed in (2, 3, 4))
        weights, *vectors = parts
        got = Received(weights, dict.fromkeys(algorithm.broadcasts, vectors[0]))
        before = copy.deepcopy(got)
        w, state = algorithm.start(got, {}, client)
        found: list[dict[str, Any]] = []
        for number in range(2):
            batch = kind(client.a, client.b, number=number)
            g, state = algorithm.direction(batch, w, got, state, client)
            w = {name: w[name] - 0.1 * g[name] if name in g else w[name] + 1 for name in w}
            found.append(dict(g))
        update, kept = algorithm.finish(w, got, state, client)
        for name, vector in {"weights": got.weights, **got.vectors}.items():
            old = {"weights": before.weights, **before.vectors}[name]
            assert all((vector[key] == old[key]).all() for key in old)
        return [*found, update.scalars, *update.vectors.values(), *kept.values()]  # type: ignore[list-item]

    pairs = zip(sent(Quadratic, np.array), sent(Tensors, torch.from_numpy), strict=True)
    for ours, theirs in pairs:
        assert list(ours) == list(theirs)
        for name in ours:
            assert type(theirs[name]) in (torch.Tensor, float)
            np.testing.assert_allclose(ours[name], np.asarray(theirs[name]), rtol=1e-12)
