"""A simulated run has the bits of a run of real agents on a real broker and a real store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rengo.operator.result import RunResult
from rengo.operator.runs import fetch_model, follow, submit, wait_for_devices
from rengo.simulation.definition import Simulation, prepare
from rengo.simulation.run import SimulationResult, run_prepared
from rengo.site.device_process import DeviceSpec
from rengo.site.site import Site
from storage.weights import read_safetensors

TRAINERS = ("edge-1", "edge-2", "pi-1")
VALUES: dict[str, Any] = {
    "rounds": 3,
    "cohort": {"size": 3, "quorum": 3},
    "training": {"local_epochs": 1, "batch_size": 50, "learning_rate": 0.05, "momentum": 0.0},
}
RUNS = {
    "state and vectors": {"algorithm": {"name": "scaffold"}},
    "weights and a schedule": {
        "algorithm": {"name": "qfedavg", "q": 0.5},
        "schedule": {"name": "exponential", "decay": 0.5},
        "best": {"keep": True},
    },
    "models of their own": {
        "algorithm": {"name": "ditto"},
        "evaluation": {"on": "devices", "every": 2},
        "seed": 7,
    },
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Site(tmp_path_factory.mktemp("site")) as site:
        specs = [
            DeviceSpec(
                name,
                profile="pi" if name == "pi-1" else "cpu",
                engine="numpy",
                index=index,
                count=len(TRAINERS),
            )
            for index, name in enumerate(TRAINERS)
        ]
        judge = DeviceSpec("evaluator-1", engine="numpy", role="evaluator", count=len(TRAINERS))
        site.start_devices([*specs, judge], "digits")
        with site.connect() as client:
            wait_for_devices(client, [*TRAINERS, judge.name], 90.0)
        yield site


def trained(site: Site, values: dict[str, Any], output: Path) -> RunResult:
    with site.connect() as client:
        run_id = submit(client, "digits", values)
        return fetch_model(client, follow(client, run_id), output)


def simulated(values: dict[str, Any], backend: str) -> SimulationResult:
    given = Simulation("digits", values, len(TRAINERS), ids=TRAINERS, backend=backend)
    return run_prepared(prepare(given))


@pytest.mark.parametrize("more", RUNS.values(), ids=RUNS)
def test_a_simulation_has_the_bits_of_a_fleet(
    more: dict[str, Any], site: Site, tmp_path: Path
) -> None:
    values = {**VALUES, **more}
    fleet, alone = trained(site, values, tmp_path), simulated(values, "inline")
    assert fleet.model_path is not None
    weights = read_safetensors(fleet.model_path)
    assert weights.vector.tobytes() == alone.weights.vector.tobytes()
    assert fleet.report.model_sha256 == alone.report.model_sha256
    measured = [(row.round, row.measured, row.loss) for row in fleet.history]
    assert measured == [(row.round, row.measured, row.loss) for row in alone.report.history]
    assert fleet.report.spread == alone.report.spread
    best = (fleet.report.best_version, fleet.report.best_value)
    assert best == (alone.report.best_version, alone.report.best_value)
