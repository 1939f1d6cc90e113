"""``rengo runs ls|show|pause|resume|stop``."""

from __future__ import annotations

import argparse
from typing import Any

from rengo.cli.common import Commands, add_command, add_site, connect, print_json
from rengo.tables import print_table


def add(commands: Commands) -> None:
    """Add the commands."""
    group = commands.add_parser("runs", help="list, show and steer runs")
    verbs = group.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, action, summary in (
        ("ls", list_runs, "list the runs"),
        ("show", show_run, "show one run: rounds, refusals, devices"),
        ("pause", steer, "let the open round finish and start no new one"),
        ("resume", steer, "let a paused run go on"),
        ("stop", steer, "end a run with what it has committed"),
    ):
        parser = add_command(verbs, name, action, summary)
        if name != "ls":
            parser.add_argument("run_id", help="the run's id, as `rengo runs ls` shows it")
        add_site(parser)
        parser.add_argument("--json", metavar="FILE", help="write one JSON document, - for stdout")


def list_runs(options: argparse.Namespace) -> int:
    """Print the runs."""
    with connect(options) as client:
        answer = client.call("runs_ls")
    if options.json:
        print_json(answer, options.json)
        return 0
    rows = [
        [
            run["run_id"],
            run["status"],
            f"{run['rounds_completed']}/{run['rounds']}",
            _number(run["accuracy"]),
            run["task"],
            run["algorithm"],
        ]
        for run in answer["runs"]
    ]
    print_table(["run", "status", "rounds", "accuracy", "task", "algorithm"], rows, "no runs yet")
    return 0


def show_run(options: argparse.Namespace) -> int:
    """Print one run."""
    with connect(options) as client:
        run = client.call("runs_show", {"run_id": options.run_id})
    if options.json:
        print_json(run, options.json)
        return 0
    print(f"run       {run['run_id']}")
    print(f"task      {run['task']}, {run['algorithm']}, seed {run['seed']}")
    reason = f" ({run['reason']})" if run["reason"] else ""
    print(f"status    {run['status']}{reason}, {run['phase']}")
    print(f"rounds    {run['rounds_completed']} of {run['rounds']}")
    print(f"accuracy  {_number(run['accuracy'])}")
    print(f"model     {run['model_key']} sha256 {run['model_sha256']}")
    rows = [_history_row(row) for row in run["history"]]
    print_table(
        ["round", "attempt", "outcome", "updates", "seconds", "accuracy"], rows, "no rounds"
    )
    for row in run["history"]:
        for device_id, reason in row["refused"].items():
            print(f"round {row['round']}.{row['attempt']}: {device_id}: {reason}")
    return 0


def steer(options: argparse.Namespace) -> int:
    """Pause, resume or stop a run."""
    with connect(options) as client:
        run = client.call(f"runs_{options.verb}", {"run_id": options.run_id})
    if options.json:
        print_json(run, options.json)
    else:
        print(f"{run['run_id']}: {run['status']}, {run['rounds_completed']} rounds committed")
    return 0


def _history_row(row: dict[str, Any]) -> list[str]:
    reason = f" ({row['reason']})" if row["reason"] else ""
    return [
        str(row["round"]),
        str(row["attempt"]),
        row["outcome"] + reason,
        f"{len(row['included'])} of {row['invited']}",
        _number(row["seconds"], 2),
        _number(row["accuracy"]),
    ]


def _number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
