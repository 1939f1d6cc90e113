"""Runs a simulation from its definition to its result: ``rengo.simulate``."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from fl_client.engines.base import Precision
from fl_client.tasks.base import Task
from fl_server.operations.results.runs import RunReport
from fl_server.rounds.facts import Fact
from rengo.operator.result import RunResult
from rengo.simulation import checkpoint
from rengo.simulation.backends import open_backend
from rengo.simulation.choice import Choice, choose
from rengo.simulation.coordinator import Coordinator, Parts
from rengo.simulation.definition import Prepared, Simulation, prepare
from rengo.simulation.history import RoundFigures, RoundHistory
from rengo.simulation.paced import PacedCoordinator
from rengo.simulation.report import description_of, digest_of, run_report
from rengo.simulation.results import ResultsFolder
from rengo.simulation.states import BoundedStates
from rengo.simulation.virtual.account import VirtualAccount
from runtime.config import merge
from runtime.errors import ConfigError, RunNotCompleted
from storage.weights import Weights
from storage.weights.safetensors import stored_size

CHECKPOINT_EVERY_S = 30.0


@dataclass(frozen=True)
class SimulationResult:
    """The outcome of a simulated run.

    Attributes:
        report: what a run of a fleet reports too.
        rounds: a row for each committed round.
        weights: the last version.
        best_weights: the best version, where the run looked for it.
        choice: the backend, and why that one.
        folder: where all of it lies, None where it was not to be kept.
        no_plot: why there is no plot in the folder.
        was_there: whether the folder had the results already.
        account: what the rounds took in virtual time, energy and bytes, and who was dropped; None
            where no fleet was named.
    """

    report: RunReport
    rounds: Sequence[RoundFigures]
    weights: Weights
    best_weights: Weights | None
    choice: Choice
    folder: Path | None = None
    no_plot: str = ""
    was_there: bool = False
    account: VirtualAccount | None = None

    @property
    def run_id(self) -> str:
        """What the run is called: the same for the same simulation."""
        return self.report.run_id

    @property
    def status(self) -> str:
        """What the run ended as."""
        return self.report.status

    @property
    def accuracy(self) -> float | None:
        """The accuracy of the last version that was measured."""
        return self.report.accuracy

    def document(self) -> dict[str, Any]:
        """Return the JSON document of ``--json``."""
        report = self.report
        result = RunResult(report.run_id, report.status, report.accuracy, report.history, report)
        document = result.document()
        if self.folder is not None:
            document["model_path"] = str(self.folder / "model.safetensors")
            if self.best_weights is not None:
                document["best_model_path"] = str(self.folder / "best.safetensors")
        rates = [1 / each for each in sorted(report.round_s[1:]) if each > 0]
        return {
            **document,
            "backend": self.choice.name,
            "backend_reason": self.choice.reason,
            "rounds_per_s": rates[len(rates) // 2] if rates else None,
            **({} if self.account is None else {"virtual": self.account.document()}),
        }


@dataclass(frozen=True)
class Keeping:
    """Where a run's results go.

    Attributes:
        folder: that of this run alone.
        checkpoint_every_s: how often its progress is saved there, at most.
    """

    folder: Path
    checkpoint_every_s: float = CHECKPOINT_EVERY_S


Progress = Callable[[Coordinator, RoundHistory], None]
"""Called after every committed round."""


def simulate(  # noqa: PLR0913  a keyword for each option of the command line
    task: str | type[Task],
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
    precision: Precision = "auto",
    workers: int = 0,
    out: Path | str | None = None,
    fleet: str = "",
    trace: Path | str | None = None,
) -> SimulationResult:
    """Train a task over virtual clients in this process's memory, without a broker or a store.

    With the torch engine it makes torch deterministic and single-threaded in this process. Sums of
    numpy's have one order where OMP_NUM_THREADS and OPENBLAS_NUM_THREADS were 1 at its import.

    Args:
        task: a task's name, ``FILE.py:CLASS``, or a Task class in a file.
        clients: how many there are (default: 100, or as many as ``data`` has folders).
        cohort: how many train in a round (default: 10).
        rounds: how many rounds (default: 10).
        seed: what the first weights, the cohorts and the order of examples are drawn from.
        settings: further keys of the run's definition, nested, as `rengo run --set` sets them.
        partition: how a shared data set is divided over the clients, as ``dirichlet:0.1``.
        data: a folder with a sub-folder of data for each client.
        backend: what computes; "auto" chooses.
        engine: numpy or torch; "auto" is numpy, but for long work that it does slowly, torch.
        precision: of torch's products; bfloat16 is faster on many processors, and less exact.
        workers: how many processes at most, where the backend has any; 0 for as many as cores.
        out: a folder for the results; a run that was killed goes on from there.
        fleet: what devices the clients are in virtual time, as ``phone=80,pi-4=20`` or a TOML file.
        trace: a CSV file that says when these devices are online.

    Raises:
        ConfigError: something about it cannot be; the text says what.
        RunNotCompleted: the run failed, and why.
    """
    if not isinstance(task, str):
        from rengo.site.site import task_spec  # noqa: PLC0415  it brings all of a site

        task = task_spec(task)
    values: dict[str, Any] = {}
    merge(values, dict(settings or {}))
    given = {"rounds": rounds, "seed": seed}
    merge(values, {key: value for key, value in given.items() if value is not None})
    if cohort is not None:
        merge(values, {"cohort": {"size": cohort}})
    simulation = Simulation(
        task,
        values,
        clients,
        partition,
        None if data is None else Path(data).absolute(),
        backend=backend,
        engine=engine,
        precision=precision,
        workers=workers,
        fleet=fleet,
        trace=None if trace is None else Path(trace).absolute(),
    )
    return run_prepared(prepare(simulation), None if out is None else Keeping(Path(out).absolute()))


def run_prepared(
    prepared: Prepared, keeping: Keeping | None = None, progress: Progress | None = None
) -> SimulationResult:
    """Return the outcome of a simulation.

    Args:
        keeping: where its results go, and what was done of it before.

    Raises:
        ConfigError: the folder holds something else, or the backend cannot do it; says why.
        RunNotCompleted: the run failed, and why.
    """
    described = description_of(prepared.run, prepared.setup.arithmetic, prepared.world)
    folder = None if keeping is None else ResultsFolder(keeping.folder, described)
    choice = choose(prepared.backend, prepared.setup)
    if folder is not None and folder.is_complete:
        return SimulationResult(
            folder.report(), folder.rounds(), *folder.read(), choice, folder.path, was_there=True
        )
    work = _Work(prepared, digest_of(described), choice, keeping, folder, progress)
    backend = open_backend(choice.name, prepared.setup)
    states = BoundedStates()
    try:
        return work.run(Parts(backend, states))
    finally:
        backend.close()
        states.close()


@dataclass
class _Work:
    """One simulation from its beginning, or from its checkpoint, to its end."""

    prepared: Prepared
    digest: str
    choice: Choice
    keeping: Keeping | None
    folder: ResultsFolder | None
    progress: Progress | None
    _began_at: float = field(default_factory=time.time)
    _pace: checkpoint.CheckpointPace | None = None

    def run(self, parts: Parts) -> SimulationResult:
        """Return the outcome."""
        saved = None if self.folder is None else checkpoint.load(self.folder.checkpoint)
        if saved is not None and saved.digest != self.digest:
            raise ConfigError(f"{self.folder} has the checkpoint of another simulation")
        run, world, ledger = self.prepared.run, self.prepared.world, None
        if saved is not None:
            ledger = saved.ledger
        coordinator = (
            Coordinator(run, parts, self, ledger)
            if world is None
            else PacedCoordinator(run, parts, world, self)
        )
        self._coordinator, self._states = coordinator, parts.states
        self._history = self._new_history(coordinator)
        if self.keeping is not None:
            self._pace = checkpoint.CheckpointPace(self.keeping.checkpoint_every_s)
        if saved is None:
            coordinator.begin()
        else:
            self._began_at = saved.began_at
            saved.restore(coordinator, self._history, parts.states)
            coordinator.resume()
        while not coordinator.ended:
            coordinator.step()
        self._history.settle(last=True)
        return self._result(coordinator)

    # --- what happens -------------------------------------------------------------------------

    def observe(self, fact: Fact) -> None:
        """See :class:`rengo.simulation.coordinator.RunWatch`."""
        self._history.observe(fact)

    def committed(self) -> None:
        """See :class:`rengo.simulation.coordinator.RunWatch`."""
        self._history.settle()
        account = self._account
        if account is not None:
            row = self._history.rounds[-1]
            attempts = account.attempts(row.round)
            row.dropped = len(attempts[-1].dropped)
            row.energy_j = math.fsum(entry.cost.joules for entry in attempts)
        # what a fleet does in mid-run is not saved: such a run begins anew
        pace = self._pace if account is None else None
        if pace is not None and pace.is_due() and not self._coordinator.ended:
            self._save()
        if self.progress is not None:
            self.progress(self._coordinator, self._history)

    @property
    def _account(self) -> VirtualAccount | None:
        paced = self._coordinator
        return paced.account if isinstance(paced, PacedCoordinator) else None

    def _save(self) -> None:
        assert self.folder is not None
        assert self._pace is not None
        begun_s = time.monotonic()
        head = (self.digest, self._began_at)
        path = self.folder.checkpoint
        checkpoint.save(path, head, self._coordinator, self._history, self._states)
        self._pace.written(time.monotonic() - begun_s)

    def _new_history(self, coordinator: Coordinator) -> RoundHistory:
        layout = self.prepared.run.initial.weights.layout
        vectors = len(self.prepared.setup.algorithm.broadcasts)
        return RoundHistory(
            coordinator.machine.ledger,
            time.monotonic,
            lambda: coordinator.timeline.now_s,
            stored_size(layout) + 4 * layout.size * vectors,
        )

    def _result(self, coordinator: Coordinator) -> SimulationResult:
        run, ledger, history = self.prepared.run, coordinator.machine.ledger, self._history
        if ledger.status == "failed":
            raise RunNotCompleted(f"the simulated run failed: {ledger.reason}")
        weights = coordinator.version.weights
        best = None if coordinator.best is None else coordinator.best.weights
        run_id = f"sim-{self.digest[:12]}"
        report = run_report(run_id, run, (ledger, history), weights, self._began_at)
        path = None if self.folder is None else self.folder.path
        result = SimulationResult(
            report, history.rounds, weights, best, self.choice, path, account=self._account
        )
        if self.folder is None:
            return result
        reason = self.folder.write(report, result.document(), history.rounds, (weights, best))
        return replace(result, no_plot=reason)
