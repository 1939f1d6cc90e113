"""``rengo runs ls|show|follow|extend|compare|pause|resume|stop``."""

from __future__ import annotations

import argparse

from fl_server.operations.catalogue import (
    RUNS_EXTEND,
    RUNS_LS,
    RUNS_PAUSE,
    RUNS_RESUME,
    RUNS_SHOW,
    RUNS_STOP,
)
from fl_server.operations.results.runs import RoundRow, RunDevice, RunReport, RunSummary
from rengo.cli.codes import DONE, INTERRUPTED
from rengo.cli.common import (
    Commands,
    add_command,
    add_site,
    command_name,
    connect,
    interruptible,
    print_json,
    progress_stream,
)
from rengo.cli.operator.experiment import add_compare
from rengo.operator.runs import follow
from rengo.terminal.fitting import misfit_lines
from rengo.terminal.format import figure, metrics_line, size, target_text
from rengo.terminal.lines import say
from rengo.terminal.select import open_view
from rengo.terminal.tables import print_table, when

_LISTED = 100
# the server copies a version within the store before it answers
_EXTEND_S = 300.0
_STEERING = {"pause": RUNS_PAUSE, "resume": RUNS_RESUME, "stop": RUNS_STOP}


def add(commands: Commands) -> None:
    """Add the commands."""
    group = commands.add_parser("runs", help="list, show and steer runs")
    verbs = group.add_subparsers(dest="verb", metavar="VERB", required=True)
    add_compare(verbs)
    for name, action, summary in (
        ("ls", list_runs, "list the runs"),
        ("show", show_run, "show one run: rounds, refusals, devices"),
        ("follow", follow_run, "stay with a run until it has ended"),
        (
            "extend",
            extend,
            "go on where a run ended, in a new run from its last version and server state",
        ),
        ("pause", steer, "let the open round finish and start no new one"),
        ("resume", steer, "let a paused run go on"),
        ("stop", steer, "end a run with what it has committed"),
    ):
        parser = add_command(verbs, name, action, summary)
        if name == "ls":
            parser.add_argument(
                "--last",
                type=int,
                default=_LISTED,
                metavar="N",
                help=f"how many, the latest (default: {_LISTED})",
            )
        else:
            parser.add_argument("run_id", help="the run's id, as `rengo runs ls` shows it")
        if name == "extend":
            parser.add_argument("--rounds", type=int, required=True, help="how many more rounds")
        add_site(parser)
        parser.add_argument("--json", metavar="FILE", help="write one JSON document, - for stdout")


def list_runs(options: argparse.Namespace) -> int:
    """Print the runs."""
    with connect(options) as client:
        answer = client.request(RUNS_LS, {"last": options.last})
    if options.json:
        print_json(answer.document(), options.json)
        return DONE
    rows = [
        [
            run.run_id,
            "waiting" if _waits(run) else run.status,
            f"{run.rounds_completed}/{run.rounds}",
            _headline(run),
            run.task,
            run.algorithm,
        ]
        for run in answer.runs
    ]
    print_table(["run", "status", "rounds", "measured", "task", "algorithm"], rows, "no runs yet")
    if len(rows) == options.last:
        say("", f"the latest {options.last}; --last N shows more")
    return DONE


def show_run(options: argparse.Namespace) -> int:
    """Print one run."""
    with connect(options) as client:
        run = client.request(RUNS_SHOW, {"run_id": options.run_id})
    if options.json:
        print_json(run.document(), options.json)
        return DONE
    say(*_head(run), "")
    both = run.headline != "loss"
    rows = [_history_row(row, with_loss=both) for row in run.history]
    headings = ["round", "attempt", "outcome", "updates", "seconds", run.headline]
    headings += ["loss"] if both else []
    print_table(headings, rows, "no round has begun")
    refusals = [
        f"round {row.round}.{row.attempt}: {device_id} refused: {reason}"
        for row in run.history
        for device_id, reason in row.refused.items()
    ] + [
        f"version {row.round}: {device_id} did not evaluate it: {reason}"
        for row in run.history
        for device_id, reason in row.not_evaluated.items()
    ]
    say("", *refusals)
    devices = [_device_row(row) for row in run.devices]
    headings = ["device", "profile", "engine", "rounds", "steps", "up", "down", "memory"]
    print_table(headings, devices, "")
    return DONE


def follow_run(options: argparse.Namespace) -> int:
    """Show a run until it has ended; what came of it stays in the store."""
    out = progress_stream(options.json)
    try:
        with interruptible(), connect(options) as client, open_view(out) as view:
            result = follow(client, options.run_id, view.update)
    except KeyboardInterrupt:
        say(f"Interrupted. The run goes on: {command_name()} runs show {options.run_id}", out=out)
        return INTERRUPTED
    run = result.report
    measured = metrics_line(run.headline, run.measured, run.loss)
    say(f"{result.run_id}: {result.status}, {measured}", out=out)
    print_json(result.report.document(), options.json)
    return DONE


def extend(options: argparse.Namespace) -> int:
    """Start a run that goes on where another ended."""
    wanted = {"run_id": options.run_id, "rounds": options.rounds}
    with connect(options) as client:
        started = client.request(RUNS_EXTEND, wanted, timeout_s=_EXTEND_S)
    if options.json:
        print_json(started.document(), options.json)
        return DONE
    name = command_name()
    say(f"Run {started.run_id} goes on where {options.run_id} ended.")
    say(f"See how it goes: {name} runs follow {started.run_id}")
    return DONE


def _head(run: RunReport) -> list[str]:
    reason = f": {run.reason}" if run.reason else ""
    phase = "" if run.phase == "ended" else f", {run.phase}"
    if _waits(run):
        devices = (
            "1 device that has" if run.cohort_size == 1 else f"{run.cohort_size} devices that have"
        )
        phase = f", waiting for {devices} task {run.task!r}{_bundled(run)}"
    return [
        f"run       {run.run_id}",
        f"task      {run.task}, {run.algorithm}, seed {run.seed}",
        f"status    {run.status}{phase}{reason}",
        *_addressed(run),
        *_wait(run),
        f"rounds    {run.rounds_completed} of {run.rounds}, "
        f"cohort {run.cohort_size}, quorum {run.quorum}{_fitted(run)}",
        f"measured  {metrics_line(run.headline, run.measured, run.loss)}",
        *_spread(run),
        *_best(run),
        f"moved     {size(run.bytes_up)} up, {size(run.bytes_down)} down",
        f"model     {run.model_key}",
        f"sha256    {run.model_sha256}",
    ]


def _addressed(run: RunReport) -> list[str]:
    """Return whom a run addresses and, where it waits for devices, why others do not fit."""
    some = target_text(run.target, run.where)
    lines = [f"target    {some}"] if some else []
    found = run.addressed
    if found is None or found.fitting >= run.cohort_size:
        return lines
    fitting = f"devices   {found.fitting} of {found.devices} can train now"
    return [*lines, fitting, *(f"          {each}" for each in misfit_lines(found))]


def _wait(run: RunReport) -> list[str]:
    if not run.waiting:
        return []
    since = "" if run.waiting_since is None else f" since {when(run.waiting_since)}"
    return [f"waiting   for the store{since}: {run.waiting}"]


def _spread(run: RunReport) -> list[str]:
    spread = run.spread
    if spread is None:
        return []
    over = "1 device" if spread.devices == 1 else f"{spread.devices} devices"
    return [
        f"spread    mean {figure(spread.mean)}, worst 10% {figure(spread.worst_tenth)}, "
        f"variance {figure(spread.variance)} over {over}, version {spread.version}"
    ]


def _best(run: RunReport) -> list[str]:
    if run.best_version is None:
        return []
    value = f", compared by {figure(run.best_value)}"
    return [f"best      version {run.best_version}{value}: {run.run_id}.best"]


def _headline(run: RunSummary) -> str:
    if run.measured is None:
        return "-"
    return f"{run.headline} {figure(run.measured)}"


def _bundled(run: RunReport) -> str:
    one = run.cohort_size == 1
    return f" or {'takes' if one else 'take'} its bundle" if run.bundled else ""


def _fitted(run: RunReport) -> str:
    return "" if run.fit == "off" else ", orders fitted to the devices' speed"


def _waits(run: RunSummary) -> bool:
    return run.phase == "gathering" and run.status == "running"


def _device_row(row: RunDevice) -> list[str]:
    return [
        row.id,
        row.profile or "-",
        row.engine or "-",
        str(row.rounds),
        _steps(row),
        size(row.bytes_up),
        size(row.bytes_down),
        size(row.peak_rss_bytes),
    ]


def _steps(row: RunDevice) -> str:
    """Return what a device did of its epochs in its latest round, and how fast."""
    if not row.steps:
        return "-"
    part = "" if row.width >= 1 else f", {row.width:g} of the model"
    return f"{row.steps} of {row.full_steps}, {1 / row.step_s:.3g}/s{part}"


def steer(options: argparse.Namespace) -> int:
    """Pause, resume or stop a run."""
    with connect(options) as client:
        run = client.request(_STEERING[options.verb], {"run_id": options.run_id})
    if options.json:
        print_json(run.document(), options.json)
    else:
        say(f"{run.run_id}: {run.status}, {run.rounds_completed} rounds committed")
    return DONE


def _history_row(row: RoundRow, *, with_loss: bool) -> list[str]:
    reason = f" ({row.reason})" if row.reason else ""
    return [
        str(row.round),
        str(row.attempt),
        row.outcome + reason,
        f"{row.updates} of {row.invited}",
        "-" if row.seconds is None else f"{row.seconds:.2f}",
        figure(row.measured),
        *([figure(row.loss)] if with_loss else []),
    ]
