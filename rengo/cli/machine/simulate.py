"""``rengo simulate TASK``: train over virtual clients on this machine alone."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rengo.cli.codes import DONE, FAILED, INTERRUPTED
from rengo.cli.common import (
    PARTITION_HELP,
    Commands,
    absolute,
    add_command,
    add_experiment,
    add_settings,
    command_name,
    interruptible,
    print_json,
    progress_stream,
    settings_of,
)
from rengo.terminal.format import count, duration
from rengo.terminal.lines import say
from runtime.config import merge, read_toml
from runtime.errors import ConfigError, RunNotCompleted
from runtime.files import require_writable

if TYPE_CHECKING:
    from rengo.simulation.clients import VirtualClients
    from rengo.simulation.coordinator import Coordinator
    from rengo.simulation.definition import Prepared
    from rengo.simulation.history import RoundHistory
    from rengo.simulation.run import SimulationResult
    from rengo.simulation.virtual.account import VirtualAccount

_CHECKPOINT_EVERY_S = 30.0
# sums have one order on one thread; a library reads these when it is loaded
_ONE_THREAD = (
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"),
)


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands, "simulate", run, "train a task over virtual clients, on this machine alone"
    )
    parser.add_argument("task", help="a task's name or FILE.py:CLASS")
    parser.add_argument(
        "--clients", type=int, metavar="N", help="how many (default: 100, or as --data says)"
    )
    parser.add_argument(
        "--cohort", type=int, metavar="K", help="how many train in a round (default: 10)"
    )
    parser.add_argument("--rounds", type=int, metavar="R", help="how many rounds (default: 10)")
    parser.add_argument("--config", type=Path, help="the run's definition as a TOML file")
    add_settings(parser)
    parser.add_argument(
        "--backend", default="auto", help="what computes (default: auto, which says why)"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=0,
        metavar="N",
        help="how many processes at most, where the backend has any (default: one for each core)",
    )
    parser.add_argument(
        "--engine",
        choices=["auto", "numpy", "torch"],
        default="auto",
        help="what each client trains with (default: numpy, or torch for long work it does slowly)",
    )
    parser.add_argument(
        "--precision",
        choices=["auto", "float32", "bfloat16"],
        default="auto",
        help="of torch's products: bfloat16 is faster on many processors, and less exact",
    )
    parser.add_argument("--partition", default="", metavar="KIND", help=PARTITION_HELP)
    parser.add_argument(
        "--data",
        type=absolute,
        metavar="DIR",
        help="a folder with a sub-folder of data for each client, and one named evaluator if "
        "somebody is to measure on data that nobody trains on",
    )
    parser.add_argument(
        "--data-seed",
        type=int,
        default=0,
        metavar="N",
        help="what a shared data set is divided by (default: 0)",
    )
    _add_fleet(parser)
    add_experiment(parser)
    parser.add_argument(
        "--out",
        type=absolute,
        metavar="DIR",
        help="a folder for the model, figures and a plot; the same command goes on there after a "
        "kill, and does not repeat what is done",
    )
    parser.add_argument(
        "--checkpoint-every",
        type=float,
        default=_CHECKPOINT_EVERY_S,
        metavar="S",
        help="how often at most progress is saved in --out (default: 30 s)",
    )
    parser.add_argument("--json", metavar="FILE", help="write one JSON document, - for stdout")


def _add_fleet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fleet",
        default="",
        metavar="KINDS",
        help="let results arrive in virtual time as from these devices: shares of presets "
        "(pi-zero-2, pi-4, phone, edge-cpu, gpu) as phone=80,pi-4=20, or a TOML file",
    )
    parser.add_argument(
        "--trace",
        type=absolute,
        metavar="FILE",
        help="a CSV file that says when these devices are online: device,from_s,to_s,online",
    )


def run(options: argparse.Namespace) -> int:
    """Simulate the run, or the runs of an experiment."""
    for name in _ONE_THREAD:
        os.environ.setdefault(name, "1")
    definition: dict[str, Any] = {} if options.config is None else read_toml(options.config)
    merge(definition, settings_of(options.set))
    if options.rounds is not None:
        definition["rounds"] = options.rounds
    if options.cohort is not None:
        merge(definition, {"cohort": {"size": options.cohort}})
    if options.group:
        definition["group"] = options.group
    if options.checkpoint_every < 0:
        raise ConfigError(f"--checkpoint-every {options.checkpoint_every:g}: at least 0")
    out = progress_stream(options.json)
    if options.out is not None:
        require_writable(options.out)
    try:
        with interruptible():
            if options.sweep or options.seeds is not None:
                return _run_all(options, definition, out)
            result = _simulate(options, _prepare(options, definition), options.out, out)
    except KeyboardInterrupt:
        kept = "" if options.out is None else "; the same command goes on from what is saved"
        print(f"Interrupted{kept}.", file=out)
        return INTERRUPTED
    _conclude(result, out)
    print_json(result.document(), options.json)
    return DONE


def _prepare(
    options: argparse.Namespace, definition: dict[str, Any], earlier: VirtualClients | None = None
) -> Prepared:
    """Return the simulation checked, on the clients of an earlier one where they are the same."""
    # numpy and all that needs it, after the threads were limited
    from rengo.simulation.definition import Simulation, prepare  # noqa: PLC0415

    simulation = Simulation(
        options.task,
        definition,
        options.clients,
        options.partition,
        options.data,
        options.data_seed,
        backend=options.backend,
        engine=options.engine,
        precision=options.precision,
        workers=options.workers,
        fleet=options.fleet,
        trace=options.trace,
    )
    return prepare(simulation, earlier)


def _simulate(
    options: argparse.Namespace, prepared: Prepared, folder: Path | None, out: TextIO
) -> SimulationResult:
    # see above
    from rengo.simulation.run import Keeping, run_prepared  # noqa: PLC0415
    from rengo.terminal.rounds import RoundsBar  # noqa: PLC0415

    run = prepared.run
    headline = run.definition.evaluation.headline
    keeping = None if folder is None else Keeping(folder, options.checkpoint_every)
    with RoundsBar(out, run.plan.rounds, headline) as bar:

        def progress(coordinator: Coordinator, history: RoundHistory) -> None:
            bar.update(coordinator.machine.ledger.model.version, history.latest(headline))

        return run_prepared(prepared, keeping, progress)


def _run_all(options: argparse.Namespace, definition: dict[str, Any], out: TextIO) -> int:
    """Simulate every run of an experiment, and compare them."""
    # they need more than one run does
    from rengo.operator.comparison import compare  # noqa: PLC0415
    from rengo.operator.sweep import SweptKey, definitions  # noqa: PLC0415
    from rengo.terminal.comparison import print_comparison  # noqa: PLC0415

    sweeps = [SweptKey.parse(text) for text in options.sweep]
    seeds = 1 if options.seeds is None else options.seeds
    planned = definitions(definition, sweeps, seeds, options.group or "simulations")
    # every one is checked before the first begins
    clients: VirtualClients | None = None
    for each in planned:
        clients = _prepare(options, each, clients).run.clients
    results, failed = [], 0
    for number, each in enumerate(planned, 1):
        variant = f"{each['variant']}, " if each["variant"] else ""
        say(f"run {number} of {len(planned)}: {variant}seed {each['seed']}", out=out)
        folder = None if options.out is None else options.out / f"run-{number:04d}"
        try:
            prepared = _prepare(options, each, clients)
            results.append(_simulate(options, prepared, folder, out))
            say(_verdict(results[-1]), out=out)
        except RunNotCompleted as error:
            failed += 1
            say(str(error), out=out)
    if not results:
        return FAILED
    found = compare([result.report for result in results])
    say("", out=out)
    print_comparison(found, out)
    if options.out is not None:
        say("", f"Again: {command_name()} runs compare {options.out}", out=out)
    documents = [result.document() for result in results]
    print_json({**found.document(), "results": documents}, options.json)
    return FAILED if failed else DONE


def _conclude(result: SimulationResult, out: TextIO) -> None:
    say("", _verdict(result), f"backend {result.choice.name}: {result.choice.reason}", out=out)
    if result.account is not None:
        say(_paced(result.account), out=out)
    if result.folder is not None:
        plot = f"none: {result.no_plot}" if result.no_plot else "beside it"
        say(f"model   {result.folder / 'model.safetensors'}", f"plot    {plot}", out=out)


def _paced(account: VirtualAccount) -> str:
    told = account.document()
    rows = told["rounds"]
    dropped, invited = sum(len(row["dropped"]) for row in rows), sum(row["invited"] for row in rows)
    return (
        f"fleet   {duration(told['seconds'])} of virtual time, {told['energy_j'] / 1000:.3g} kJ, "
        f"{dropped} of {count(invited, 'order')} dropped"
    )


def _verdict(result: SimulationResult) -> str:
    report = result.report
    took = f"{count(report.rounds_completed, 'round')} in {duration(report.wall_s)}"
    told = "was not measured" if report.measured is None else f"{report.measured:.4f}"
    early = f"; {report.reason}" if report.reason else ""
    there = "; it was there already" if result.was_there else ""
    return f"{report.status}: {report.headline} {told} after {took}{early}{there}"
