"""``rengo run … --seeds --sweep``: the runs of an experiment; ``rengo runs compare``."""

from __future__ import annotations

import argparse
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO, TypeAlias

from fl_client.tasks.registry import load_task
from fl_server.operations.catalogue import RUNS_LS, RUNS_SHOW
from fl_server.operations.results.runs import RunSummary
from rengo.cli.codes import DONE, FAILED, INTERRUPTED
from rengo.cli.common import (
    Commands,
    absolute,
    add_command,
    add_experiment,
    add_site,
    command_name,
    connect,
    interruptible,
    print_json,
    progress_stream,
)
from rengo.operator.client import OperatorClient
from rengo.operator.comparison import Comparison, compare
from rengo.operator.definitions import check_definition
from rengo.operator.runs import follow, wait_for_ends
from rengo.operator.sweep import SweptKey, definitions
from rengo.simulation.results import reports_below
from rengo.terminal.comparison import print_comparison
from rengo.terminal.lines import say
from rengo.terminal.plot import draw_comparison
from rengo.terminal.select import open_view
from runtime.errors import NotFound, RunNotCompleted
from runtime.files import require_writable

Begin: TypeAlias = Callable[[OperatorClient, argparse.Namespace, dict[str, Any]], str]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what makes several runs of one command, and how they are submitted."""
    add_experiment(parser)
    parser.add_argument(
        "--at-once",
        action="store_true",
        help="submit the runs of --seeds and --sweep side by side (default: one after the other)",
    )


def add_compare(verbs: Commands) -> None:
    """Add ``rengo runs compare``."""
    parser = add_command(verbs, "compare", compare_runs, "put runs side by side, by variant")
    parser.add_argument(
        "names",
        nargs="+",
        metavar="RUN|GROUP|DIR",
        help="runs, groups of runs, or folders of `rengo simulate --out`",
    )
    parser.add_argument(
        "--target",
        type=float,
        metavar="VALUE",
        help="also say after how many rounds the metric reached this",
    )
    parser.add_argument(
        "--plot", type=absolute, metavar="FILE", help="draw the metric by round, as a PNG file"
    )
    add_site(parser)
    parser.add_argument("--json", metavar="FILE", help="write one JSON document, - for stdout")


def run_all(options: argparse.Namespace, definition: dict[str, Any], begin: Begin) -> int:
    """Submit every run of an experiment, stay until all have ended, and compare them."""
    sweeps = [SweptKey.parse(text) for text in options.sweep]
    seeds = 1 if options.seeds is None else options.seeds
    group = options.group or f"sweep-{secrets.token_hex(4)}"
    planned = definitions(definition, sweeps, seeds, group)
    out = progress_stream(options.json)
    begun: list[str] = []
    try:
        with interruptible(), connect(options) as client:
            if options.bundle is None:
                task = load_task(options.task)
                for each in planned:
                    check_definition(task, each)
            for each in planned:
                begun.append(begin(client, options, each))
                say(_line(len(begun), len(planned), each, begun[-1]), out=out)
                if not options.at_once:
                    _follow(client, begun[-1], out)
            wait_for_ends(client, begun)
            reports = [client.request(RUNS_SHOW, {"run_id": run_id}) for run_id in begun]
    except KeyboardInterrupt:
        say(_interrupted(group, begun, len(planned)), out=out)
        return INTERRUPTED
    found = compare(reports)
    say("", out=out)
    print_comparison(found, out)
    say("", f"Again, with a plot: {command_name()} runs compare {group} --plot FILE", out=out)
    print_json({"group": group, **found.document()}, options.json)
    return FAILED if any(report.status == "failed" for report in reports) else DONE


def compare_runs(options: argparse.Namespace) -> int:
    """Print runs side by side, and draw them where it is asked for."""
    out = progress_stream(options.json)
    if options.plot is not None:
        require_writable(options.plot.parent)
    simulated = {name: reports_below(Path(name)) for name in options.names if Path(name).is_dir()}
    names = [name for name in options.names if name not in simulated]
    reports = [report for found in simulated.values() for report in found]
    if names:
        with connect(options) as client:
            reports += [
                client.request(RUNS_SHOW, {"run_id": run_id}) for run_id in _named(client, names)
            ]
    found = compare(reports, options.target)
    print_comparison(found, out)
    if options.plot is not None:
        _draw(found, options.plot, out)
    print_json(found.document(), options.json)
    return DONE


def _follow(client: OperatorClient, run_id: str, out: TextIO) -> None:
    """Show a run until it has ended; one that fails does not keep the others from running."""
    try:
        with open_view(out) as view:
            follow(client, run_id, view.update)
    except RunNotCompleted as error:
        say(str(error), out=out)


def _named(client: OperatorClient, names: Sequence[str]) -> list[str]:
    """Return the runs that names stand for, each once, the oldest of a group first."""
    known: list[RunSummary] = list(reversed(client.request(RUNS_LS, {}).runs))
    found: dict[str, None] = {}
    for name in names:
        runs = [run.run_id for run in known if run.run_id == name or run.group == name != ""]
        if not runs:
            raise NotFound(f"no run and no group {name!r}; `rengo runs ls` lists the runs")
        found |= dict.fromkeys(runs)
    return list(found)


def _line(number: int, count: int, definition: dict[str, Any], run_id: str) -> str:
    variant = f"{definition['variant']}, " if definition["variant"] else ""
    return f"run {number} of {count}: {variant}seed {definition['seed']}: {run_id}"


def _interrupted(group: str, begun: Sequence[str], count: int) -> str:
    if not begun:
        return "Interrupted. No run was submitted."
    name = command_name()
    return (
        f"Interrupted. {len(begun)} of {count} runs were submitted; what was goes on: "
        f"{name} runs show {begun[-1]}, {name} runs compare {group}"
    )


def _draw(found: Comparison, path: Path, out: TextIO) -> None:
    curves = {
        each.variant: {n: (spread.mean, spread.deviation or 0.0) for n, spread in curve.items()}
        for each in found.variants
        if (curve := each.curve())
    }
    if not curves:
        say(f"no plot: the {found.headline} was not measured", out=out)
        return
    draw_comparison(curves, found.headline, found.target, path)
    say("", f"plot  {path}", out=out)
