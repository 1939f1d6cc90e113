"""``rengo demo``: everything on this machine, as real processes."""

from __future__ import annotations

import argparse
from pathlib import Path

from rengo.cli.common import (
    Commands,
    add_command,
    add_settings,
    interruptible,
    print_json,
    settings_of,
)
from rengo.demo import DemoSettings, run_demo
from rengo.view import RunView


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "demo", run, "train one model across processes, from nothing")
    parser.add_argument("--task", default="digits", help="a task's name or FILE.py:CLASS")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--clients", type=int, default=6, help="how many devices train")
    parser.add_argument("--seed", type=int, default=0, help="the run's seed")
    add_settings(parser)
    parser.add_argument("--json", metavar="FILE", help="write one JSON document")
    parser.add_argument("--output", type=Path, default=Path("rengo-output"))


def run(options: argparse.Namespace) -> int:
    """Run the demo."""
    settings = DemoSettings(
        options.task, options.rounds, options.clients, options.seed, options.output
    )
    with interruptible(), RunView() as view:
        result = run_demo(settings, lambda _: None, view.update, settings_of(options.set))
    view.conclude(result)
    print_json(result.document(), options.json)
    return 0
