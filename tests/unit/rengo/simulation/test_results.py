"""The folder of a simulated run, and runs that go on from a checkpoint in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rengo
from rengo.simulation.coordinator import Coordinator
from rengo.simulation.definition import Simulation, prepare
from rengo.simulation.history import RoundHistory
from rengo.simulation.results import reports_below
from rengo.simulation.run import Keeping, SimulationResult, run_prepared
from runtime.errors import ConfigError, NotFound

VALUES = {
    "rounds": 8,
    "cohort": {"size": 4},
    "training": {"local_epochs": 1, "batch_size": 20, "learning_rate": 0.2},
}
STATEFUL = {**VALUES, "algorithm": {"name": "scaffold"}, "training": {"batch_size": 20}}
PERSONAL = {**VALUES, "algorithm": {"name": "ditto"}, "evaluation": {"on": "devices", "every": 3}}
# the best version is an early one
BEST = {**VALUES, "best": {"keep": True}, "evaluation": {"metrics": {"loss": "higher"}}}
SERVER = {**VALUES, "algorithm": {"name": "fedadam"}}


class Stop(Exception):
    pass


def simulated(values: dict[str, Any], folder: Path, stop_at: int = 0) -> SimulationResult:
    def progress(coordinator: Coordinator, history: RoundHistory) -> None:
        if coordinator.machine.ledger.model.version == stop_at:
            raise Stop

    prepared = prepare(Simulation("digits", values, 10, backend="inline"))
    return run_prepared(prepared, Keeping(folder, 0.0), progress)


@pytest.mark.parametrize(
    "values",
    [VALUES, STATEFUL, PERSONAL, BEST, SERVER],
    ids=["plain", "stateful", "personal", "best", "server's"],
)
def test_a_run_that_was_ended_goes_on_to_the_same_bits(
    values: dict[str, Any], tmp_path: Path
) -> None:
    whole = simulated(values, tmp_path / "whole")
    for stop_at in (1, 4, 7):
        with pytest.raises(Stop):
            simulated(values, tmp_path / "parts", stop_at)
        assert (tmp_path / "parts" / "checkpoint.npz").is_file()
    found = simulated(values, tmp_path / "parts")
    assert np.array_equal(found.weights.vector, whole.weights.vector)
    assert found.run_id == whole.run_id
    best = [each.best_weights for each in (found, whole)]
    if best[0] is not None and best[1] is not None:
        assert np.array_equal(best[0].vector, best[1].vector)
        assert not np.array_equal(best[0].vector, whole.weights.vector)
    else:
        assert best == [None, None]
        assert values is not BEST
    rows = [
        [row.model_copy(update={"seconds": 0.0}) for row in each.report.history]
        for each in (found, whole)
    ]
    assert rows[0] == rows[1]
    same = ("measured", "best_version", "best_value", "spread", "bytes_up", "bytes_down", "devices")
    assert [getattr(found.report, name) for name in same] == [
        getattr(whole.report, name) for name in same
    ]
    assert not (tmp_path / "parts" / "checkpoint.npz").exists()


def test_a_folder_holds_what_came_of_the_run(tmp_path: Path) -> None:
    found = simulated(BEST, tmp_path)
    document = json.loads((tmp_path / "result.json").read_text())
    assert document["model_path"] == str(tmp_path / "model.safetensors")
    assert document["model_sha256"] == found.report.model_sha256
    assert document["rounds_completed"] == 8
    assert len(document["round_s"]) == 8
    assert sum(row["rounds"] for row in document["devices"]) == 8 * 4
    loaded = rengo.load_model(tmp_path / "model.safetensors")
    assert [array.shape for array in loaded.values()] == [(32, 64), (32,), (10, 32), (10,)]
    assert (tmp_path / "best.safetensors").is_file()
    lines = (tmp_path / "rounds.csv").read_text().splitlines()
    assert lines[0].startswith("round,attempts,seconds")
    assert len(lines) == 9
    assert [report.run_id for report in reports_below(tmp_path)] == [found.run_id]


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    first = simulated(VALUES, tmp_path)
    again = simulated(VALUES, tmp_path, stop_at=1)
    assert again.was_there
    assert not first.was_there
    assert np.array_equal(again.weights.vector, first.weights.vector)
    assert again.document() == first.document()
    assert list(again.rounds) == list(first.rounds)


def test_a_folder_is_of_one_simulation(tmp_path: Path) -> None:
    simulated(VALUES, tmp_path)
    with pytest.raises(ConfigError, match=r"differs in definition\.seed"):
        simulated({**VALUES, "seed": 3}, tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds other files"):
        simulated(VALUES, other)
    with pytest.raises(NotFound, match="no results"):
        reports_below(other)


@pytest.mark.parametrize("damage", [b"", b"PK", b"\x00" * 4000])
def test_a_damaged_checkpoint_is_told(damage: bytes, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        simulated(VALUES, tmp_path, stop_at=2)
    (tmp_path / "checkpoint.npz").write_bytes(damage)
    with pytest.raises(ConfigError, match="remove it to begin anew"):
        simulated(VALUES, tmp_path)
