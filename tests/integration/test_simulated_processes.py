"""The simulator's worker processes: the bits of one process, and an end that is told."""

from __future__ import annotations

import os
import signal
from typing import Any

import numpy as np
import pytest

from rengo.simulation.backends import processes
from rengo.simulation.coordinator import Coordinator
from rengo.simulation.definition import Simulation, prepare
from rengo.simulation.history import RoundHistory
from rengo.simulation.run import SimulationResult, run_prepared
from runtime.errors import RunNotCompleted

VALUES: dict[str, Any] = {
    "rounds": 4,
    "cohort": {"size": 5},
    "training": {"local_epochs": 1, "batch_size": 10, "learning_rate": 0.1, "momentum": 0.0},
}


def simulated(backend: str, workers: int, more: dict[str, Any]) -> SimulationResult:
    simulation = Simulation("digits", {**VALUES, **more}, 12, backend=backend, workers=workers)
    return run_prepared(prepare(simulation))


@pytest.mark.parametrize(
    ("workers", "more"),
    [
        (3, {"algorithm": {"name": "scaffold"}}),
        # who is in and who is late must not depend on which worker is done first
        (3, {"cohort": {"size": 3, "over_selection": 2.0}}),
        (2, {"algorithm": {"name": "ditto"}, "evaluation": {"on": "devices"}}),
        (2, {"transforms": [{"name": "sparsify"}]}),
    ],
    ids=["state-3", "over-selected-3", "personal-2", "sparsified-2"],
)
def test_the_number_of_workers_changes_no_bit(workers: int, more: dict[str, Any]) -> None:
    alone, together = simulated("inline", 0, more), simulated("processes", workers, more)
    assert np.array_equal(alone.weights.vector, together.weights.vector)
    assert alone.report.model_sha256 == together.report.model_sha256
    for one, other in zip(alone.rounds, together.rounds, strict=True):
        assert one.metrics == other.metrics
        assert one.train_loss == other.train_loss
    assert alone.report.spread == together.report.spread


def test_a_worker_that_is_killed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[processes.ProcessesBackend] = []

    class Watched(processes.ProcessesBackend):
        def __init__(self, setup: Any) -> None:
            super().__init__(setup)
            opened.append(self)

    monkeypatch.setattr(processes, "ProcessesBackend", Watched)
    killed: list[int] = []

    def kill(coordinator: Coordinator, history: RoundHistory) -> None:
        if not killed:
            pid = opened[0]._workers[0].process.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    simulation = Simulation("digits", VALUES, 12, backend="processes", workers=2)
    with pytest.raises(RunNotCompleted, match="ended by signal 9") as caught:
        run_prepared(prepare(simulation), progress=kill)
    assert f"worker 1 of the simulation (process {killed[0]})" in str(caught.value)
