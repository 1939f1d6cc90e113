"""HeteroFL against plain training of the first units, in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import algorithms
from algorithms.base import DeviceFacts
from runtime.errors import ConfigError
from tests.in_process import InProcessRun
from tests.narrow import HIDDEN, RATE, STEPS, Network, Rows, averaged, data_of

WIDTHS = {"d-0": 0.25, "d-1": 0.5}


@pytest.mark.parametrize("engine", ["numpy", "torch"])
def test_two_rounds_are_those_of_the_paper(engine: str, tmp_path: Path) -> None:
    settings = {"widths": WIDTHS}
    run = InProcessRun(tmp_path, Rows(), "heterofl", settings, engines=[engine] * 3)
    for _ in range(2):
        base, trained = Network.of(run.weights), []
        for index, width in enumerate((0.25, 0.5, 1.0)):
            x, y = data_of(index)
            kept = range(round(HIDDEN * width))
            network = base.units(kept)
            for _ in range(STEPS):
                network = network.less(RATE, network.gradient(x, y, 1 / width))
            trained.append((kept, network, len(x)))
        expected = averaged(base, trained)
        assert np.abs(expected - base.flat()).max() > 0.01
        run.round()
        np.testing.assert_allclose(run.weights.vector, expected, atol=2e-6)


def test_what_nobody_trains_keeps_its_bits(tmp_path: Path) -> None:
    run = InProcessRun(tmp_path, Rows(), "heterofl", {"widths": WIDTHS})
    before = run.weights.arrays()
    run.round([0, 1])
    after = run.weights.arrays()
    for name, row in (("0.weight", 4), ("0.bias", 4)):
        assert after[name][row:].tobytes() == before[name][row:].tobytes()
        assert (after[name][:row] != before[name][:row]).all()
    assert after["2.weight"][:, 4:].tolist() == before["2.weight"][:, 4:].tolist()


def test_who_trains_how_much() -> None:
    algorithm = algorithms.load("heterofl", {"widths": {"pi": 0.25, "gpu": 1, "d-7": 0.5}})
    found = [
        algorithm.width(DeviceFacts(*each), 1, 0)
        for each in (("a", "pi"), ("a", "gpu"), ("a", "cpu"), ("d-7", "pi"), ("a",))
    ]
    # of a device that has not said what it is, no more is asked than of the weakest
    assert found == [0.25, 1.0, 1.0, 0.5, 0.25]
    assert algorithm.narrow_widths == (0.25, 0.5)


@pytest.mark.parametrize("width", [0, -0.5, 1.5, "half", True])
def test_a_width_is_a_part_of_the_model(width: object) -> None:
    with pytest.raises(ConfigError, match=r"setting widths\.pi: must be"):
        algorithms.load("heterofl", {"widths": {"pi": width}})


def test_adam_is_advised_against() -> None:
    algorithm = algorithms.load("heterofl", {"widths": {"pi": 0.25}})
    assert "use sgd" in algorithm.advice({"optimizer": "adam"})
    assert algorithm.advice({"optimizer": "sgd"}) == ""
    assert algorithms.load("heterofl").advice({"optimizer": "adam"}) == ""
