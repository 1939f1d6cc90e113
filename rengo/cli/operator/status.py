"""``rengo status``: the site in a few lines."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence

from fl_server.operations.catalogue import RUNS_LS, SERVER_INFO
from fl_server.operations.results.members import DeviceRow, ServerInfo
from fl_server.operations.results.runs import RunSummary
from rengo.cli.codes import DONE
from rengo.cli.common import Commands, add_command, add_site, connect, print_json
from rengo.terminal.format import count
from rengo.terminal.lines import say

_RUNS = 5


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "status", run, "say in a few lines how the site is")
    add_site(parser)
    parser.add_argument("--json", metavar="FILE", help="write one JSON document, - for stdout")


def run(options: argparse.Namespace) -> int:
    """Print how the site is."""
    with connect(options) as client:
        server, devices = client.request(SERVER_INFO), client.devices()
        runs = client.request(RUNS_LS).runs
    if options.json:
        document = {
            "server": server.document(),
            "devices": dict(Counter(device.status for device in devices)),
            "runs": [each.document() for each in _latest(runs)],
        }
        print_json(document, options.json)
        return DONE
    say(*site_lines(server, devices, runs))
    return DONE


def site_lines(
    server: ServerInfo, devices: Sequence[DeviceRow], runs: Sequence[RunSummary]
) -> list[str]:
    """Return the lines for a person: the server, its devices, the runs that go on or were last."""
    found = Counter(device.status for device in devices)
    statuses = ", ".join(f"{number} {status}" for status, number in sorted(found.items()))
    refused = sum(server.refused_messages.values())
    lines = [
        f"site {server.domain}: its server is up (start {server.epoch})",
        f"  devices  {statuses or 'none yet; `rengo devices invite` makes a token for one'}",
    ]
    if refused:
        lines.append(f"  refused  {count(refused, 'message')} since the start; see `rengo audit`")
    lines += [f"  run      {_run(each)}" for each in _latest(runs)]
    if not runs:
        lines.append("  run      none yet; `rengo run TASK` begins one")
    return lines


def _latest(runs: Sequence[RunSummary]) -> list[RunSummary]:
    """Return the runs that go on, and beside them the latest."""
    latest = {each.run_id for each in runs[:_RUNS]}
    return [each for each in runs if each.phase != "ended" or each.run_id in latest]


def _run(run: RunSummary) -> str:
    reason = f": {run.reason}" if run.reason else ""
    phase = "" if run.phase == "ended" else f", {run.phase}"
    rounds = f"round {run.rounds_completed} of {run.rounds}"
    return f"{run.run_id}  {run.status}{phase}, {rounds}{reason}"
