"""FedSAM against the paper's algorithm, and its point: flat minima rather than sharp ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import algorithms
from algorithms.base import Arrays, Received
from tests.federation import Quadratic, joined, split
from tests.unit.algorithms import laws

FEDSAM = algorithms.load("fedsam", {"rho": 0.5})


def test_rounds_are_the_papers_algorithm() -> None:
    of, x = laws.clients(3, steps=(3, 5)), np.zeros(laws.SIZE)
    for _ in range(3):
        ends = []
        for client in of:
            y = x.copy()
            for _ in range(client.steps):
                g = client.a * (y - client.b)
                y -= 0.1 * client.a * (y + 0.5 * g / np.linalg.norm(g) - client.b)
            ends.append(y)
        x = np.mean(ends, axis=0)
    np.testing.assert_allclose(laws.run(FEDSAM, of, 3).weights, x, rtol=1e-11)


@dataclass(frozen=True)
class Lopsided(Quadratic):
    """The loss of a valley at 0 that is steep on the left and flat on the right."""

    def gradient(self, w: Arrays) -> dict[str, Any]:
        x = joined(w, len(self.a))
        return split(np.where(x < 0, 10 * x, x))


@pytest.mark.parametrize(("rho", "flat_side"), [(0.0, False), (0.5, True)])
def test_in_a_lopsided_valley_it_stays_on_the_flat_side(rho: float, *, flat_side: bool) -> None:
    valley, algorithm = Lopsided(np.ones(1), np.zeros(1)), algorithms.load("fedsam", {"rho": rho})
    got, path = Received(split(np.array([1.0]))), []
    w, state = algorithm.start(got, {}, valley)
    for _ in range(200):
        g, state = algorithm.direction(valley, w, got, state, valley)
        w = {name: w[name] - 0.05 * g[name] for name in w}
        path.append(joined(w, 1)[0])
    assert (np.mean(path[100:]) > 0.05) == flat_side


def test_at_a_minimum_it_stays() -> None:
    client = Quadratic(np.ones(laws.SIZE), np.zeros(laws.SIZE))
    assert np.array_equal(laws.run(FEDSAM, [client], 1).weights, np.zeros(laws.SIZE))


def test_with_rho_0_it_is_fedavg_exactly() -> None:
    laws.assert_fedavg(algorithms.load("fedsam", {"rho": 0.0}), laws.clients(steps=(3, 7)))


def test_blocks_and_the_kind_of_array_do_not_matter() -> None:
    laws.assert_blockwise(FEDSAM)
    laws.assert_same_on_torch(FEDSAM)
