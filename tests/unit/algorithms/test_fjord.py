"""FjORD against plain training of the narrower model that each step draws, in float64."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

import algorithms
from runtime.errors import ConfigError
from storage.weights import Layout, TensorSpec
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
