"""``rengo run TASK``: submit a run to the site and, if wished, follow it."""

from __future__ import annotations

import argparse
import shlex
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from fl_server.operations.catalogue import RUNS_SHOW
from rengo.cli.codes import DONE, INTERRUPTED
from rengo.cli.common import (
    Commands,
    add_command,
    add_output,
    add_settings,
    add_site,
    command_name,
    connect,
    interruptible,
    print_json,
    progress_stream,
    settings_of,
)
from rengo.cli.operator import experiment
from rengo.cli.operator.task import add_trust
from rengo.operator.bundle_files import public_key
from rengo.operator.bundles import chosen
from rengo.operator.client import OperatorClient
from rengo.operator.models import load
from rengo.operator.runs import fetch_model, follow, submit
from rengo.terminal.fitting import misfit_lines
from rengo.terminal.format import target_text
from rengo.terminal.lines import say
from rengo.terminal.select import open_view
from rengo.terminal.summary import conclude
from runtime.config import merge, read_toml
from runtime.errors import ConfigError
from runtime.files import require_writable

TASK_HELP = "a task's name or FILE.py:CLASS; built into version 0 here"


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "run", run, "train a task on the site's devices")
    parser.add_argument(
        "task",
        nargs="?",
        help=f"{TASK_HELP}; may be left out with --bundle and --trust",
    )
    add_run_options(parser)
    parser.add_argument(
        "--from",
        dest="initial",
        metavar="NAME|FILE",
        help="what version 0 is: a version of this site or a safetensors file "
        "(default: what the task's model begins with)",
    )


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add what says how a run goes."""
    add_site(parser)
    parser.add_argument(
        "--bundle",
        metavar="NAME[@SHA]",
        help="a bundle of the site, for devices that have not the task installed",
    )
    add_trust(parser, "whose bundle may build version 0 in this process")
    parser.add_argument("--config", type=Path, help="the run's definition as a TOML file")
    parser.add_argument("--rounds", type=int, help="how many rounds (default: 10)")
    parser.add_argument(
        "--target",
        action="append",
        default=[],
        metavar="NAME",
        help="who may train: a device, a domain, or group:NAME; may repeat (default: everybody)",
    )
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="CONDITION",
        help="what must be true of who trains, for example profile=pi, 'ram>=4GB' or lab=a,b; may "
        "repeat",
    )
    add_settings(parser)
    experiment.add_options(parser)
    parser.add_argument("--follow", action="store_true", help="stay until the run has ended")
    parser.add_argument(
        "--json", metavar="FILE", help="follow, then write one JSON document, - for stdout"
    )
    add_output(parser)


def run(options: argparse.Namespace) -> int:
    """Submit the run; follow it with --follow or --json."""
    if options.task is None and options.bundle is None:
        raise ConfigError("name the task, as `rengo run digits`, or a bundle by --bundle")
    definition: dict[str, Any] = {} if options.config is None else read_toml(options.config)
    merge(definition, settings_of(options.set))
    if options.rounds is not None:
        definition["rounds"] = options.rounds
    for key in ("target", "where"):
        if given := getattr(options, key):
            definition[key] = given
    definition.pop("task", None)
    if options.sweep or options.seeds is not None:
        return experiment.run_all(options, definition, _begin)
    if options.group is not None:
        definition["group"] = options.group
    out = progress_stream(options.json)
    if not (options.follow or options.json):
        return _submit(options, definition)
    require_writable(options.output)
    run_id = ""
    try:
        with interruptible(), connect(options) as client:
            with open_view(out) as view:
                view.phase("Submitting the run")
                run_id = _begin(client, options, definition)
                result = follow(client, run_id, view.update)
            result = fetch_model(client, result, options.output)
    except KeyboardInterrupt:
        say(_interrupted(run_id), out=out)
        return INTERRUPTED
    show = (f"{command_name()} runs show {run_id}", "its rounds, refusals and devices")
    print(conclude(result, [show]), file=out)
    print_json(result.document(), options.json)
    return DONE


def _begin(client: OperatorClient, options: argparse.Namespace, definition: dict[str, Any]) -> str:
    initial = None
    if options.initial is not None:
        initial = load(options.initial, client.server_key, lambda: nullcontext(client))
    if options.bundle is None:
        return submit(client, options.task, definition, initial)
    trusted = [public_key(each) for each in options.trust]
    with chosen(client, options.task, options.bundle, trusted) as found:
        return submit(client, found.task, {**definition, "bundle": found.definition}, initial)


def _submit(options: argparse.Namespace, definition: dict[str, Any]) -> int:
    with interruptible(), connect(options) as client:
        run_id = _begin(client, options, definition)
        shown = client.request(RUNS_SHOW, {"run_id": run_id})
    say(f"Run {run_id} is submitted.")
    if shown.phase == "gathering":
        addressed = target_text(shown.target, shown.where)
        of = f", of {addressed}" if addressed else ""
        waits = f"It waits for devices that have task {shown.task!r}{of}"
        if options.bundle is not None:
            say(f"{waits}, or take it as a bundle.")
        else:
            say(f"{waits}; add one: {command_name()} client --task {shlex.quote(options.task)}")
        if shown.addressed is not None:
            say(*misfit_lines(shown.addressed))
    say(f"See how it goes: {command_name()} runs show {run_id}")
    return DONE


def _interrupted(run_id: str) -> str:
    if not run_id:
        return "Interrupted. No run was submitted."
    name = command_name()
    return (
        f"Interrupted. The run goes on: {name} runs show {run_id}, or end it: "
        f"{name} runs stop {run_id}"
    )
