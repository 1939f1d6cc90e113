"""Federations in memory that have trained, for the tests of personal models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import algorithms
from tests.federation import Array, Federation, Quadratic, joined

SIZE = 6


def clients(count: int = 3, **settings: Any) -> list[Quadratic]:
    """Return clients of different losses and numbers of examples."""
    random = np.random.default_rng(7)
    return [
        Quadratic(random.uniform(0.5, 2, SIZE), random.normal(0, 3, SIZE), number + 1, **settings)
        for number in range(count)
    ]


def trained(
    name: str,
    settings: Mapping[str, Any],
    of: Sequence[Quadratic],
    rounds: int = 3,
) -> Federation:
    """Return a federation after some rounds of all clients, from the same version 0."""
    begin = np.random.default_rng(3).normal(0, 1, SIZE)
    federation = Federation(algorithms.load(name, settings), begin, seed=5)
    for _ in range(rounds):
        federation.run_round(of, range(len(of)))
    return federation


def personal(federation: Federation, client: Quadratic, index: int) -> Array:
    """Return the weights that a client predicts with."""
    got, state = federation.received(), federation.states.get(index, {})
    found = federation.algorithm.personal(got, state, client)
    return joined(got.weights if found is None else found, SIZE)
