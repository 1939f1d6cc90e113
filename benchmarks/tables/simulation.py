"""Runs a setting on the simulator, in this process."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from algorithms.base import DeviceFacts
from benchmarks.tables.setting import Metrics, Outcome, Setting
from fl_server.rounds.ledger import Ledger
from fl_server.rounds.spread import spread_over_devices
from rengo.simulation.coordinator import Coordinator, SimulatedRun
from rengo.simulation.definition import Simulation, prepare
from rengo.simulation.history import RoundHistory
from rengo.simulation.run import run_prepared
from runtime.errors import RunNotCompleted

_PERSONAL = "personal_accuracy"
# what a client of IFCA keeps
_CHOSEN = "chosen/value"


def simulate(setting: Setting, seed: int) -> Outcome:
    """Return what a run of a setting gives; the seed is the data's too."""
    begun_s = time.process_time()
    curve = _Curve(setting.stop_at)
    diverged = 0
    try:
        run_prepared(prepare(simulation_of(setting, seed)), progress=curve.progress)
        curve.take()
    except RunNotCompleted:
        diverged = curve.rounds + 1
    except _ReachedError:
        pass
    cpu_s = time.process_time() - begun_s
    return Outcome(curve.measured, diverged, cpu_s, curve.chosen, curve.sent, curve.backend)


def simulation_of(setting: Setting, seed: int) -> Simulation:
    """Return the run as `rengo simulate` would be asked for it."""
    return Simulation(
        setting.task,
        definition_of(setting, seed),
        clients=setting.clients,
        partition=setting.partition,
        data_seed=seed,
        engine=setting.engine,
        backend=setting.backend,
        workers=1,
    )


def definition_of(setting: Setting, seed: int) -> dict[str, Any]:
    """Return the keys of the run's definition."""
    evaluation = {"on": setting.measured_on, "every": setting.every}
    size = setting.cohort or setting.clients
    return {
        "rounds": setting.rounds,
        "seed": seed,
        # a client whose training diverges declines, and no other takes its place
        "cohort": {"size": size, "quorum": size, "max_attempts": 1},
        "algorithm": {"name": setting.algorithm, **setting.options},
        "training": dict(setting.training),
        "evaluation": evaluation,
    }


class _ReachedError(Exception):
    """The run may end: what it was to reach is reached."""


@dataclass
class _Curve:
    """The metrics of a run by round, as they come."""

    stop_at: float | None
    measured: dict[int, Metrics] = field(default_factory=dict)
    rounds: int = 0
    ledger: Ledger | None = None
    chosen: dict[int, int] = field(default_factory=dict)
    sent: float = 1.0
    backend: str = ""

    def progress(self, coordinator: Coordinator, history: RoundHistory) -> None:
        """Take note of a round, and of what was measured since the one before."""
        self.ledger, self.rounds = coordinator.machine.ledger, len(history.rounds)
        # a backend is named as its file
        self.backend = type(coordinator.parts.backend).__module__.rpartition(".")[2]
        if self.rounds == 1:
            self.sent = _sent(coordinator.run)
        for client in range(coordinator.run.clients.spec.count):
            kept = coordinator.parts.states.get(client)
            if _CHOSEN in kept:
                self.chosen[client] = int(kept[_CHOSEN])
        self.take()
        reached = (found.get("accuracy", 0.0) for found in self.measured.values())
        if self.stop_at is not None and max(reached, default=0.0) >= self.stop_at:
            raise _ReachedError

    def take(self) -> None:
        """Take the metrics that have come; those of the last version come after its round."""
        assert self.ledger is not None
        for version in self.ledger.evaluations.keys() - self.measured.keys():
            found = _spread(self.ledger) if version == max(self.ledger.evaluations) else {}
            self.measured[version] = {**self.ledger.metrics(version), **found}


def _sent(run: SimulatedRun) -> float:
    """Return how much of the model a client is sent and sends, the mean over all clients."""
    layout, sizes = run.initial.weights.layout, []
    for name in run.clients.ids:
        facts = DeviceFacts(name, run.clients.spec.profile)
        width = run.algorithm.width(facts, 1, run.definition.seed)
        part = run.algorithm.part(width, 1, layout)
        sizes.append(layout.size if part is None else part.part.size)
    return math.fsum(sizes) / len(sizes) / layout.size


def _spread(ledger: Ledger) -> Mapping[str, float]:
    """Return how the clients' accuracies differ, of their own models where they have such."""
    found = spread_over_devices(ledger, _PERSONAL, lower=False)
    found = found or spread_over_devices(ledger, "accuracy", lower=False)
    if found is None or found.devices < 2:
        return {}
    return {"worst_tenth": found.worst_tenth, "variance": found.variance}
