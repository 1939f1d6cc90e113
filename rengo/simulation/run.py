"""Runs a simulation from its definition to its result: ``rengo.simulate``."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fl_server.rounds.facts import Fact
from rengo.simulation.backends import open_backend
from rengo.simulation.choice import Choice, choose
from rengo.simulation.coordinator import Coordinator, Parts, SimulatedRun
from rengo.simulation.definition import Prepared, Simulation, prepare
from rengo.simulation.history import History, RoundFigures
from rengo.simulation.paced import PacedCoordinator
from rengo.simulation.states import MemoryStates
from rengo.simulation.virtual.account import VirtualAccount
from runtime.config import merge
from runtime.errors import RunNotCompleted
from storage.weights import Weights


@dataclass(frozen=True)
class SimulationResult:
    """The outcome of a simulated run.

    Attributes:
        run: what was simulated.
        status: "completed", or why there is no more to come.
        reason: why it ended before its last round, else "".
        rounds: a row for each committed round.
        weights: the last version.
        best: that of its best version, where the run looked for it, by its number.
        choice: the backend, and why that one.
        wall_s: how long the rounds took.
        account: what they took in virtual time, energy and bytes, and who was dropped; None where
            no fleet was named.
    """

    run: SimulatedRun
    status: str
    reason: str
    rounds: list[RoundFigures]
    weights: Weights
    best: tuple[int, Weights] | None
    choice: Choice
    wall_s: float
    account: VirtualAccount | None = None

    @property
    def metrics(self) -> Mapping[str, float]:
        """The metrics of the last version that was measured."""
        return next((row.metrics for row in reversed(self.rounds) if row.metrics), {})

    @property
    def accuracy(self) -> float | None:
        """The accuracy of the last version that was measured."""
        return self.metrics.get("accuracy")


Watch = Callable[[Coordinator, History], None]


def simulate(  # noqa: PLR0913  a keyword for each option of the command line
    task: str,
    *,
    clients: int | None = None,
    cohort: int | None = None,
    rounds: int | None = None,
    seed: int | None = None,
    settings: Mapping[str, Any] | None = None,
    partition: str = "",
    data: Path | str | None = None,
    backend: str = "auto",
    engine: Literal["auto", "numpy", "torch"] = "auto",
    workers: int = 0,
    fleet: str = "",
    trace: Path | str | None = None,
) -> SimulationResult:
    """Train a task over virtual clients in this process's memory, without a broker or a store.

    Args:
        task: a task's name or ``FILE.py:CLASS``.
        clients: how many there are (default: 100, or as many as ``data`` has folders).
        cohort: how many train in a round (default: 10).
        rounds: how many rounds (default: 10).
        seed: what the first weights, the cohorts and the order of examples are drawn from.
        settings: further keys of the run's definition, nested, as `rengo run --set` sets them.
        partition: how a shared data set is divided over the clients, as ``dirichlet:0.1``.
        data: a folder with a sub-folder of data for each client.
        backend: what computes; "auto" chooses.
        engine: numpy or torch; "auto" is numpy where it can do the run.
        workers: how many processes at most, where the backend has any; 0 for as many as cores.
        fleet: what devices the clients are in virtual time, as ``phone=80,pi-4=20`` or a TOML file.
        trace: a CSV file that says when these devices are online.

    Raises:
        ConfigError: something about it cannot be; the text says what.
        RunNotCompleted: the run failed, and why.
    """
    values: dict[str, Any] = {}
    merge(values, dict(settings or {}))
    given = {"rounds": rounds, "seed": seed}
    merge(values, {key: value for key, value in given.items() if value is not None})
    if cohort is not None:
        merge(values, {"cohort": {"size": cohort}})
    folder = None if data is None else Path(data).absolute()
    return run_simulation(
        Simulation(
            task,
            values,
            clients,
            partition,
            folder,
            backend=backend,
            engine=engine,
            workers=workers,
            fleet=fleet,
            trace=None if trace is None else Path(trace).absolute(),
        )
    )


def run_simulation(simulation: Simulation, watch: Watch | None = None) -> SimulationResult:
    """Return the outcome of a simulation.

    Args:
        watch: called after every committed round.

    Raises:
        ConfigError: something about it cannot be; the text says what.
        RunNotCompleted: the run failed, and why.
    """
    prepared = prepare(simulation)
    choice = choose(simulation.backend, prepared.setup)
    backend = open_backend(choice.name, prepared.setup)
    states = MemoryStates()
    try:
        return _run(prepared, Parts(backend, states), choice, watch)
    finally:
        backend.close()
        states.close()


def _run(prepared: Prepared, parts: Parts, choice: Choice, watch: Watch | None) -> SimulationResult:
    begun_s = time.monotonic()

    def observe(fact: Fact) -> None:
        history.observe(fact)

    coordinator = (
        Coordinator(prepared.run, parts, observe)
        if prepared.world is None
        else PacedCoordinator(prepared.run, parts, prepared.world, observe)
    )
    ledger = coordinator.machine.ledger
    history = History(ledger, time.monotonic, lambda: coordinator.timeline.now_s)
    coordinator.begin()
    told = 0
    while not coordinator.ended:
        coordinator.step()
        if len(history.rounds) > told:
            told = len(history.rounds)
            history.settle()
            if watch is not None:
                watch(coordinator, history)
    history.settle(last=True)
    if ledger.status == "failed":
        raise RunNotCompleted(f"the simulated run failed: {ledger.reason}")
    best = coordinator.best
    return SimulationResult(
        prepared.run,
        ledger.status,
        ledger.reason,
        history.rounds,
        coordinator.version.weights,
        None if best is None or ledger.best is None else (ledger.best[0], best.weights),
        choice,
        time.monotonic() - begun_s,
        coordinator.account if isinstance(coordinator, PacedCoordinator) else None,
    )
