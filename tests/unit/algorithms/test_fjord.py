"""FjORD against plain training of the narrower model that each step draws, in float64."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import algorithms
from algorithms.base import Received
from runtime.errors import ConfigError
from storage.weights import Layout, TensorSpec
from tests.federation import Quadratic
from tests.in_process import InProcessRun
from tests.narrow import HIDDEN, RATE, STEPS, Network, Rows, averaged, data_of

WIDTHS = {"d-0": 0.25, "d-1": 0.5}


@pytest.mark.parametrize("engine", ["numpy", "torch"])
def test_each_step_trains_the_width_that_it_draws(engine: str, tmp_path: Path) -> None:
    settings = {"widths": WIDTHS}
    run = InProcessRun(tmp_path, Rows(), "fjord", settings, engines=[engine] * 3)
    drawn = set()
    for _ in range(2):
        base, trained = Network.of(run.weights), []
        for index, most in enumerate((0.25, 0.5, 1.0)):
            x, y = data_of(index)
            network = base.units(range(round(HIDDEN * most)))
            widths = [width for width in (0.25, 0.5, 1.0) if width <= most]
            for step in range(STEPS):
                generator = np.random.default_rng([run.plan(index).local_seed, step])
                width = widths[generator.integers(len(widths))]
                drawn.add((most, width))
                kept = range(math.ceil(HIDDEN * width))
                g = network.units(kept).gradient(x, y)
                network = network.put(kept, network.units(kept).less(RATE, g))
            trained.append((range(round(HIDDEN * most)), network, len(x)))
        expected = averaged(base, trained)
        assert np.abs(expected - base.flat()).max() > 0.01
        run.round()
        np.testing.assert_allclose(run.weights.vector, expected, atol=2e-6)
    assert {(1.0, 0.25), (1.0, 0.5), (1.0, 1.0), (0.5, 0.25), (0.5, 0.5)} <= drawn


def test_weights_that_a_step_has_not_are_not_moved_by_it() -> None:
    """A sigmoid of a unit that is left out is 1/2, so that weights after it have a gradient."""
    w = {"0.weight": np.ones((4, 2)), "0.bias": np.ones(4), "2.weight": np.ones((3, 4))}
    seen: list[Any] = []

    def gradient(at: Any) -> Any:
        seen.append(at)
        return {name: np.full_like(array, 7.0) for name, array in w.items()}

    algorithm = algorithms.load("fjord", {"widths": {"pi": 0.5}})
    local = Quadratic(np.zeros(2), np.zeros(2), width=1.0)
    for number in range(9):
        batch: Any = SimpleNamespace(gradient=gradient, number=number)
        g, _ = algorithm.direction(batch, w, Received(w), {}, local)
        small = seen[-1]["0.bias"].tolist() == [1, 1, 0, 0]
        assert g["0.bias"].tolist() == ([7, 7, 0, 0] if small else [7, 7, 7, 7])
        assert g["2.weight"].tolist() == ([[7, 7, 0, 0]] * 3 if small else [[7] * 4] * 3)
    assert {at["0.bias"].sum() for at in seen} == {2.0, 4.0}


def test_a_norm_over_dropped_units_is_refused() -> None:
    layout = Layout(
        (
            TensorSpec("0.weight", (4, 2)),
            TensorSpec("1.weight", (4,)),
            TensorSpec("1.bias", (4,)),
            TensorSpec("2.weight", (3, 4)),
        )
    )
    with pytest.raises(ConfigError, match=r"1\.weight normalises over units"):
        algorithms.load("fjord", {"widths": {"pi": 0.5}}).part(0.5, 1, layout)
    assert algorithms.load("heterofl", {"widths": {"pi": 0.5}}).part(0.5, 1, layout) is not None
    assert algorithms.load("fjord", {"widths": {"gpu": 1.0}}).part(1.0, 1, layout) is None
