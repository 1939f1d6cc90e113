"""The backend ray on a local Ray of two workers: the bits of one process, and workers that die."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rengo
from rengo.simulation import backends
from runtime.errors import MissingExtra

LOCAL = {"training": {"local_epochs": 1, "batch_size": 10, "learning_rate": 0.2}}


def simulated(backend: str, **more: Any) -> rengo.SimulationResult:
    given = {"clients": 12, "cohort": 6, "rounds": 3, "settings": LOCAL, "workers": 2, **more}
    return rengo.simulate("digits", backend=backend, **given)


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    assert "ray" in backends.names()
    # what an import of a missing library meets
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"pip install 'rengo\[ray\]'"):
        simulated("ray")


@pytest.mark.soak
def test_ray_has_the_bits_of_one_process():
    pytest.importorskip("ray", reason="it comes with the extra [ray]")
    for settings in ({}, {"algorithm": {"name": "scaffold"}}, {"evaluation": {"on": "devices"}}):
        given = {"settings": {**LOCAL, **settings}}
        alone, shared = simulated("inline", **given), simulated("ray", **given)
        assert np.array_equal(alone.weights.vector, shared.weights.vector)
        assert alone.accuracy == shared.accuracy


TASK = """
import os
from pathlib import Path

import numpy as np

from rengo import Linear, Task


class Deadly(Task):
    def model(self):
        return [Linear(4, 2)]

    def data(self, device):
        made = np.random.default_rng(device.index)
        return (made.normal(size=(20, 4)).astype(np.float32), np.arange(20) % 2), None

    def local_update(self, weights, context):
        left = Path(os.environ["DEATHS"])
        deaths = sorted(left.iterdir())
        if deaths and context.device.index == 1:
            deaths[0].unlink()
            os.kill(os.getpid(), 9)
        return context.train()
"""


@pytest.mark.soak
@pytest.mark.parametrize(("deaths", "ends"), [(1, "same"), (20, "told")])
def test_a_worker_that_is_killed_is_tried_again_and_then_told(
    tmp_path: Path, deaths: int, ends: str
):
    pytest.importorskip("ray", reason="it comes with the extra [ray]")
    (tmp_path / "deadly.py").write_text(textwrap.dedent(TASK))
    left = tmp_path / "deaths"
    left.mkdir()
    for number in range(deaths):
        (left / f"{number:02d}").touch()
    command = [sys.executable, "-m", "rengo", "simulate", str(tmp_path / "deadly.py") + ":Deadly"]
    given = ["--clients", "3", "--cohort", "3", "--rounds", "2", "--workers", "2"]
    done = subprocess.run(
        [*command, *given, "--backend", "ray", "--set", "evaluation.on=none"],
        env={**os.environ, "DEATHS": str(left)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    if ends == "same":
        assert done.returncode == 0, done.stderr
        assert not list(left.iterdir())
    else:
        assert done.returncode == 3
        assert "Ray lost its worker 3 times" in done.stderr
        assert "Traceback" not in done.stderr
