"""FedRolex against plain training of the units of each round's window, in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.in_process import InProcessRun
from tests.narrow import HIDDEN, RATE, STEPS, Network, Rows, averaged, data_of

WIDTHS = {"d-0": 0.25, "d-1": 0.5, "d-2": 0.5}


@pytest.mark.parametrize("engine", ["numpy", "torch"])
def test_the_window_rolls_as_in_the_paper(engine: str, tmp_path: Path) -> None:
    settings = {"widths": WIDTHS}
    run = InProcessRun(tmp_path, Rows(), "fedrolex", settings, engines=[engine] * 3)
    for t in range(HIDDEN - 1):
        base, trained = Network.of(run.weights), []
        for index, width in enumerate(WIDTHS.values()):
            x, y = data_of(index)
            kept = [(t + number) % HIDDEN for number in range(round(HIDDEN * width))]
            network = base.units(kept)
            for _ in range(STEPS):
                network = network.less(RATE, network.gradient(x, y, 1 / width))
            trained.append((kept, network, len(x)))
        expected = averaged(base, trained)
        run.round()
        np.testing.assert_allclose(run.weights.vector, expected, atol=2e-6)


def test_weak_devices_alone_train_every_weight(tmp_path: Path) -> None:
    run = InProcessRun(tmp_path, Rows(), "fedrolex", {"widths": {"d-0": 0.25}}, engines=["numpy"])
    before = run.weights.vector
    for _ in range(HIDDEN - 1):
        run.round()
    assert (run.weights.vector != before).all()
    same = InProcessRun(tmp_path, Rows(), "heterofl", {"widths": {"d-0": 0.25}}, engines=["numpy"])
    for _ in range(HIDDEN - 1):
        same.round()
    assert (same.weights.vector == before).mean() > 0.5
