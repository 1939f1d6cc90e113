"""FedAvgM against numbers by hand, and against FedAvg without momentum."""

from __future__ import annotations

import numpy as np

import algorithms
from tests.unit.algorithms import laws


def test_velocity_builds_up_by_hand() -> None:
    # velocities 1, 1.5, 1.75: steps of twice as much
    algorithm = algorithms.load("fedavgm", {"server_momentum": 0.5, "server_learning_rate": 2.0})
    found = laws.server_rounds(algorithm, [np.ones(1, np.float32)] * 3, np.zeros(1, np.float32))
    assert [float(each[0]) for each in found] == [2.0, 5.0, 8.5]
    assert found[-1].dtype == np.float32


def test_a_slow_direction_goes_faster_than_with_fedavg() -> None:
    of = laws.clients(3, steps=(1,), learning_rate=0.02)
    best = laws.optimum(of)
    plain, fast = (
        np.abs(laws.run(algorithms.load(name), of, 60).weights - best).max()
        for name in ("fedavg", "fedavgm")
    )
    assert fast < 0.2 * plain


def test_without_momentum_it_is_fedavg_exactly() -> None:
    laws.assert_fedavg(algorithms.load("fedavgm", {"server_momentum": 0.0}), laws.clients())


def test_blocks_and_the_kind_of_array_do_not_matter() -> None:
    laws.assert_blockwise(algorithms.load("fedavgm"))
    laws.assert_same_on_torch(algorithms.load("fedavgm"))
