"""Every algorithm in the simulator: the same bits as by the server's files and the devices' files.

The oracle is ``InProcessRun``: the aggregator on a store, and the training process's jobs with
their files. Its devices are the simulation's clients.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import algorithms
from algorithms.transforms import TRANSFORMS
from fl_client.engines.base import load_engine
from fl_client.tasks.base import Task
from rengo.simulation.clients import ClientsSpec, VirtualClients
from rengo.simulation.definition import Simulation, prepare
from rengo.simulation.run import SimulationResult, run_prepared
from tests.contract.test_algorithms import EARLY, NAMES, ON_BOTH, Plain, Rows, run_of

ROUNDS = 3
IDS = ("d-0", "d-1", "d-2")
RULES = ["median", "geometric_median"]


def simulated(values: dict[str, Any], engine: str, task: Task | None = None) -> SimulationResult:
    given = {"rounds": ROUNDS, "cohort": {"size": 3}, "evaluation": {"on": "devices"}, **values}
    simulation = Simulation("rows", given, 3, ids=IDS, backend="inline", engine=engine)  # type: ignore[arg-type]
    clients = VirtualClients(ClientsSpec("rows", 3, ids=IDS), task or Rows())
    return run_prepared(prepare(simulation, clients))


def without_threads() -> None:
    """Let torch train here as in a training process: on one thread."""
    load_engine("torch", Rows()).own_process()


@pytest.mark.parametrize("name", NAMES)
def test_a_simulation_is_the_run_without_its_files(name: str, tmp_path: Path) -> None:
    engine = "numpy" if name in ON_BOTH else "torch"
    if engine == "torch":
        without_threads()
    told = run_of(tmp_path / "run", name)
    for _ in range(ROUNDS):
        told.round()
    algorithm = {"name": name, **EARLY.get(name, {})}
    found = simulated({"algorithm": algorithm}, engine)
    assert found.weights.vector.tobytes() == told.weights.vector.tobytes()
    assert all(row.updates == 3 for row in found.rounds)
    metrics = found.rounds[-1].metrics
    assert "accuracy" in metrics
    assert ("personal_accuracy" in metrics) == algorithms.load(name).is_personal


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_of_single_updates_is_simulated_too(rule: str, tmp_path: Path) -> None:
    told = run_of(tmp_path / "run", "fedavg", rule=rule)
    for _ in range(ROUNDS):
        told.round()
    found = simulated({"rule": {"name": rule}}, "numpy")
    assert found.weights.vector.tobytes() == told.weights.vector.tobytes()


@pytest.mark.parametrize("name", TRANSFORMS.names())
def test_what_is_done_to_updates_is_simulated_too(name: str, tmp_path: Path) -> None:
    done = [{"name": "clip"}, {"name": name}] if name == "noise" else [{"name": name}]
    told = run_of(tmp_path / "run", "fedavg", transforms=done, task=Plain())
    for _ in range(ROUNDS):
        told.round()
    found = simulated({"transforms": done}, "numpy", Plain())
    assert found.weights.vector.tobytes() == told.weights.vector.tobytes()
