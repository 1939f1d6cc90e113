"""The maths of each algorithm against numbers worked out by hand."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import algorithms
from algorithms.base import UPDATE, Algorithm, Mean, Received
from runtime.errors import ConfigError
from tests.federation import Quadratic, joined

Array = np.ndarray[Any, Any]


def flat(*values: float) -> Array:
    return np.array(values, np.float32)


def averaged(algorithm: Algorithm, weights: Array, update: Array) -> Array:
    after, state = algorithm.aggregate(weights, Mean({UPDATE: update}), {}, {})
    assert after.dtype == np.float32
    assert state == {}
    return after


def test_fedavg_adds_the_mean_update() -> None:
    assert averaged(algorithms.load("fedavg"), flat(1, 2), flat(0.5, -1)).tolist() == [1.5, 1.0]


def test_fedavg_scales_the_step_by_the_server_learning_rate() -> None:
    algorithm = algorithms.load("fedavg", {"server_learning_rate": 0.5})
    assert averaged(algorithm, flat(1, 2), flat(0.5, -1)).tolist() == [1.25, 1.5]


def test_fedavg_client_sends_the_change_of_its_weights() -> None:
    client = Quadratic(np.ones(2), np.zeros(2))
    got = Received({"body": flat(1), "head": flat(1)})
    sent, state = algorithms.load("fedavg").finish(
        {"body": flat(3), "head": flat(5)}, got, {}, client
    )
    assert joined(sent.vectors[UPDATE], 2).tolist() == [2.0, 4.0]
    assert state == {}


def test_fedprox_pulls_towards_the_global_weights() -> None:
    # d/dw of mu/2 |w - w0|^2 is mu (w - w0); the loss's gradient at 3 is 0.5 * (3 - 1)
    client = Quadratic(np.full(2, 0.5), np.ones(2))
    w, got = {"body": flat(3), "head": flat(1)}, Received({"body": flat(1), "head": flat(1)})
    g, _ = algorithms.load("fedprox", {"mu": 0.5}).direction(client, w, got, {}, client)
    assert joined(g, 2).tolist() == [1.0 + 0.5 * 2, 0.0]


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("fedavgg", {}, "no algorithm 'fedavgg'; did you mean 'fedavg'"),
        ("scaffold", {"server_learning_rat": 1}, "did you mean 'server_learning_rate'"),
        ("../fedavg", {}, "no algorithm"),
        ("base", {}, "no algorithm"),
        ("fedavg", {"mu": 1.0}, "it has: server_learning_rate"),
        ("fedprox", {"mu": "much"}, "setting mu"),
        ("fedprox", {"mu": "0.1"}, "setting mu: must be of type float"),
        ("fedprox", {"mu": -1.0}, "setting mu: must be at least 0"),
        ("fedprox", {"mu": float("nan")}, "setting mu: must be within .1e.06"),
        ("fedavg", {"server_learning_rate": 1e308}, "server_learning_rate: must be within .1e.06"),
        ("fedavg", {"server_learning_rate": float("inf")}, "must be within .1e.06"),
        ("fedavg", {"server_learning_rate": 0.0}, "above 0"),
    ],
)
def test_a_wrong_name_or_setting_is_told_with_the_choices(
    name: str, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        algorithms.load(name, settings)


def test_listing_the_names_imports_no_numpy() -> None:
    code = "import algorithms, sys; algorithms.names(); assert 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
