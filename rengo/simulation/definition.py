"""What a simulation is: a run's definition, its virtual clients, and what computes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from algorithms.registry import load as load_algorithm
from fl_client.engines.base import Precision
from fl_client.engines.stacked.layers import unsupported
from fl_client.tasks.user_code import initial_weights_of, model_of
from fl_server.aggregation.arithmetic.in_memory import MemoryVersion
from fl_server.runs.definition import RunDefinition, parse_definition
from rengo.operator.definitions import check_definition, needs_torch, with_goals
from rengo.simulation.backend import BackendSetup
from rengo.simulation.clients import EVALUATOR, ClientsSpec, VirtualClients
from rengo.simulation.coordinator import SimulatedRun
from rengo.simulation.virtual.availability import Availability, DrawnAvailability
from rengo.simulation.virtual.fleet import VirtualFleet, parse_shares, parse_tables
from rengo.simulation.virtual.flops import TRAINING, forward_flops
from rengo.simulation.virtual.traces import read_traces
from rengo.simulation.virtual.world import VirtualWorld
from rengo.site.device_folders import device_folders
from runtime.config import read_toml
from runtime.errors import ConfigError

DEFAULT_CLIENTS = 100
DEFAULT_COHORT = 10
MAX_CLIENTS = 1_000_000
_LONG_FLOPS = 1e11
"""From so many operations on, torch's faster layers make up for the seconds of its import."""


@dataclass(frozen=True)
class Simulation:
    """One simulated run as a user asks for it.

    Attributes:
        task: a task's name or ``FILE.py:CLASS``.
        settings: the run definition's keys, nested; ``cohort.size`` is 10 unless it is set, or all
            clients where there are fewer.
        clients: how many train; None: as many as ``data`` has folders, else 100.
        partition: how a shared data set is divided; empty: as the task has it.
        data: a folder with a sub-folder of data for each client.
        data_seed: what shared data are divided by.
        ids: the clients' device ids; made up where there are none.
        backend: what computes; "auto" chooses.
        engine: that of every client; "auto" is numpy, and torch where that cannot do the run, or
            takes long over it.
        precision: of the torch engine's products.
        workers: how many processes at most, where the backend has any; 0 for as many as cores.
        fleet: what devices the clients are in virtual time: shares of presets as
            ``phone=80,pi-4=20``, or a TOML file; empty: all are there and answer at once.
        trace: a CSV file with when they are online, in place of their models.
    """

    task: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    clients: int | None = None
    partition: str = ""
    data: Path | None = None
    data_seed: int = 0
    ids: tuple[str, ...] = ()
    backend: str = "auto"
    engine: Literal["auto", "numpy", "torch"] = "auto"
    precision: Precision = "auto"
    workers: int = 0
    fleet: str = ""
    trace: Path | None = None


@dataclass(frozen=True)
class Prepared:
    """A simulation that was checked, with its data loaded.

    Attributes:
        backend: the name that was asked for.
        world: what the clients' devices do in virtual time, None where they answer at once.
    """

    run: SimulatedRun
    setup: BackendSetup
    backend: str = "auto"
    world: VirtualWorld | None = None


def prepare(simulation: Simulation, earlier: VirtualClients | None = None) -> Prepared:
    """Return the simulation checked.

    Args:
        earlier: clients that serve again where they are the same.

    Raises:
        ConfigError: something about it cannot be; the text says what, and how to mend it.
        MissingExtra: only torch can do it, and it is not installed.
    """
    spec = _spec(simulation)
    is_same = earlier is not None and earlier.spec == spec
    clients = earlier if earlier is not None and is_same else VirtualClients(spec)
    task = clients.task
    values = check_definition(task, _values(simulation, spec.count))
    definition = parse_definition(
        {**with_goals(task, values), "task": task.name}, "simulation's definition"
    )
    _require_fits(definition, clients)
    run = SimulatedRun(
        definition,
        definition.plan(
            "simulation", evaluators_online=_has_evaluator(definition.evaluation.on, clients)
        ),
        clients,
        MemoryVersion(initial_weights_of(task, definition.seed)),
    )
    engine = _engine(simulation, definition, clients, bool(needs_torch(task, values)))
    algorithm = load_algorithm(definition.algorithm.name, definition.algorithm.settings)
    transforms = definition.composition.transforms
    setup = BackendSetup(
        clients,
        algorithm,
        definition.seed,
        engine,
        simulation.workers,
        transforms,
        simulation.precision,
    )
    world = virtual_world(simulation, clients, definition.seed)
    return Prepared(run, setup, simulation.backend, world)


def _engine(
    simulation: Simulation, definition: RunDefinition, clients: VirtualClients, needed: bool
) -> str:
    """Return the engine that every client trains with."""
    if simulation.engine == "numpy" and simulation.precision not in {"auto", "float32"}:
        raise ConfigError(
            f"precision {simulation.precision}: numpy computes in float32; set engine torch"
        )
    if simulation.engine != "auto":
        return simulation.engine
    # what the data are is asked of one client: a torch Dataset needs torch
    split: Any = clients.splits(0)[0]
    if needed or simulation.precision != "auto" or not isinstance(split, tuple | None):
        return "torch"
    model = model_of(clients.task)
    if split is None or not unsupported(model) or find_spec("torch") is None:
        return "numpy"
    settings = clients.task.training.overridden(definition.training)
    trained = len(split[0]) * settings.local_epochs * definition.cohort.size * definition.rounds
    flops = TRAINING * trained * forward_flops(model, split[0].shape[1:])
    return "torch" if flops > _LONG_FLOPS else "numpy"


def virtual_world(
    simulation: Simulation, clients: VirtualClients, seed: int
) -> VirtualWorld | None:
    """Return the devices of a fleet that a simulation names, None where it names none.

    Raises:
        ConfigError: the fleet or the trace is wrong; the text says where.
    """
    if not simulation.fleet:
        if simulation.trace is not None:
            raise ConfigError(
                f"trace {simulation.trace}: it says when devices are online, and a fleet has to "
                "say what they are (--fleet phone)"
            )
        return None
    if simulation.fleet.endswith(".toml"):
        kinds = parse_tables(read_toml(Path(simulation.fleet)), simulation.fleet)
    else:
        kinds = parse_shares(simulation.fleet)
    fleet = VirtualFleet(kinds, len(clients.ids), seed)
    availability: Availability = DrawnAvailability(fleet)
    if simulation.trace is not None:
        availability = read_traces(simulation.trace)
    return VirtualWorld(fleet, availability, clients.ids)


def _spec(simulation: Simulation) -> ClientsSpec:
    count, folders = simulation.clients, None
    if simulation.data is not None:
        folders = device_folders(simulation.data)
        if count not in (None, len(folders.trainers)):
            raise ConfigError(
                f"{simulation.data} has folders of {len(folders.trainers)} clients, and "
                f"{count} are asked for"
            )
        count = len(folders.trainers)
    count = DEFAULT_CLIENTS if count is None else count
    if not 1 <= count <= MAX_CLIENTS:
        raise ConfigError(f"{count} clients: a simulation has 1 to {MAX_CLIENTS}")
    if simulation.ids and len(set(simulation.ids)) != count:
        raise ConfigError(f"{len(set(simulation.ids))} different ids for {count} clients")
    return ClientsSpec(
        simulation.task,
        count,
        simulation.data_seed,
        simulation.partition,
        () if folders is None else folders.trainers,
        None if folders is None else folders.evaluator,
        simulation.ids,
    )


def _values(simulation: Simulation, count: int) -> dict[str, Any]:
    values = {key: each for key, each in simulation.settings.items() if key != "task"}
    cohort = values.get("cohort", {})
    if isinstance(cohort, Mapping) and "size" not in cohort:
        values["cohort"] = {**cohort, "size": min(DEFAULT_COHORT, count)}
    return values


def _require_fits(definition: RunDefinition, clients: VirtualClients) -> None:
    cohort, spec, shared = definition.cohort, clients.spec, clients.shared
    if definition.flow != "sync":
        raise ConfigError(f"flow {definition.flow!r}: the simulator does runs of the flow sync")
    if cohort.size > spec.count:
        raise ConfigError(
            f"a cohort of {cohort.size} cannot be drawn from {spec.count} clients: lower "
            "cohort.size (--cohort), or have more clients (--clients)"
        )
    empty = 0 if shared is None else int((shared.starts[1:] == shared.starts[:-1]).sum())
    if shared is not None and empty:
        raise ConfigError(
            f"task {clients.task.name} has {len(shared.parts)} examples to train on, too few for "
            f"{spec.count} clients: {empty} of them would have none"
        )


def _has_evaluator(on: str, clients: VirtualClients) -> bool:
    """Return whether somebody measures on data that nobody trains on."""
    if on in {"none", "devices"}:
        return False
    if clients.spec.folders and clients.spec.evaluator_folder is None:
        if on == "evaluators":
            raise ConfigError(
                "evaluation.on is evaluators, and the data have no folder `evaluator`"
            )
        return False
    return clients.splits(EVALUATOR)[1] is not None
