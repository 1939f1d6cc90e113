"""``rengo demo``: everything on this machine, as real processes."""

from __future__ import annotations

import argparse
import shlex
import tempfile
from pathlib import Path

from rengo.cli.codes import DONE, INTERRUPTED
from rengo.cli.common import (
    PARTITION_HELP,
    Commands,
    absolute,
    add_command,
    add_output,
    add_settings,
    command_name,
    interruptible,
    print_json,
    progress_stream,
    settings_of,
)
from rengo.demo import DemoSettings, run_demo
from rengo.terminal.select import open_view
from rengo.terminal.summary import conclude

_TASK = "digits"


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "demo", run, "train one model across processes, from nothing")
    parser.add_argument(
        "--task", default=_TASK, help="a task's name or FILE.py:CLASS (default: digits)"
    )
    parser.add_argument("--rounds", type=int, default=15, help="how many rounds (default: 15)")
    parser.add_argument(
        "--clients", type=int, help="how many devices train (default: 6, or as --data says)"
    )
    parser.add_argument(
        "--data",
        type=absolute,
        metavar="DIR",
        help="a folder with a sub-folder of data for each device, and one named evaluator for the "
        "evaluator if it is to measure",
    )
    parser.add_argument("--partition", default="", metavar="KIND", help=PARTITION_HELP)
    parser.add_argument("--seed", type=int, default=0, help="the run's seed (default: 0)")
    add_settings(parser)
    parser.add_argument("--json", metavar="FILE", help="write one JSON document, - for stdout")
    add_output(parser)


def run(options: argparse.Namespace) -> int:
    """Run the demo."""
    settings = DemoSettings(
        options.task,
        options.rounds,
        options.clients,
        options.seed,
        options.output,
        options.partition,
        options.data,
    )
    out = progress_stream(options.json)
    # it tries the folder with a file, which an interrupt would leave there
    tempfile.gettempdir()
    try:
        with interruptible(), open_view(out) as view:
            result = run_demo(settings, view, settings_of(options.set))
    except KeyboardInterrupt:
        print("Interrupted. Everything is stopped, and nothing is left behind.", file=out)
        return INTERRUPTED
    print(conclude(result, _tries(options.task)), file=out)
    print_json(result.document(), options.json)
    return DONE


def _tries(task: str) -> list[tuple[str, str]]:
    name = command_name()
    same = "" if task == _TASK else f" --task {shlex.quote(task)}"
    tries = [
        (f"{name} demo{same} --set algorithm.name=fedprox", "another algorithm"),
        (f"{name} up", "a site that stays, for devices and runs of yours"),
        (f"{name} --help", "all commands"),
    ]
    example = Path("examples/my_task.py")
    if example.is_file():
        own = (f"{name} demo --task {example}:MyTask", "a task of your own")
        tries.insert(1, own)
    return tries
