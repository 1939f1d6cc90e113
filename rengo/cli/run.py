"""``rengo run TASK``: submit a run to the site and, if wished, follow it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rengo.cli.common import (
    Commands,
    add_command,
    add_settings,
    add_site,
    connect,
    interruptible,
    print_json,
    settings_of,
)
from rengo.runs import fetch_model, follow, submit
from rengo.view import RunView
from runtime.config import merge, read_toml


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "run", run, "train a task on the site's devices")
    parser.add_argument("task", help="a task's name or FILE.py:CLASS; built into version 0 here")
    add_site(parser)
    parser.add_argument("--config", type=Path, help="the run's definition as a TOML file")
    parser.add_argument("--rounds", type=int, help="how many rounds")
    add_settings(parser)
    parser.add_argument("--follow", action="store_true", help="stay until the run has ended")
    parser.add_argument("--json", metavar="FILE", help="follow, then write one JSON document")
    parser.add_argument(
        "--output", type=Path, default=Path("rengo-output"), help="the folder for the model"
    )


def run(options: argparse.Namespace) -> int:
    """Submit the run; follow it with --follow or --json."""
    definition: dict[str, Any] = {} if options.config is None else read_toml(options.config)
    merge(definition, settings_of(options.set))
    if options.rounds is not None:
        definition["rounds"] = options.rounds
    definition.pop("task", None)
    with interruptible(), connect(options) as client:
        run_id = submit(client, options.task, definition)
        print(f"run {run_id} is submitted")
        if not (options.follow or options.json):
            print(f"follow it: rengo runs show {run_id}")
            return 0
        with RunView() as view:
            result = follow(client, run_id, view.update)
        result = fetch_model(client, result, options.output)
    view.conclude(result)
    print_json(result.document(), options.json)
    return 0
