"""``rengo audit``: who did what when."""

from __future__ import annotations

import argparse
from typing import Any

from rengo.cli.common import Commands, add_command, add_site, connect, print_json
from rengo.operator.client import OperatorClient
from rengo.terminal.tables import print_table, when
from runtime.errors import ConfigError


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "audit", run, "show the audit log, the latest entries last")
    add_site(parser)
    parser.add_argument(
        "--last", type=int, default=50, metavar="N", help="how many entries (default: 50)"
    )
    parser.add_argument(
        "--verify", action="store_true", help="check that nobody changed the log behind its back"
    )
    parser.add_argument("--json", metavar="FILE", help="write one JSON document, - for stdout")


def run(options: argparse.Namespace) -> int:
    """Print the audit log."""
    if options.last < 1:
        raise ConfigError(f"--last {options.last}: show at least one entry")
    with connect(options) as client:
        verified = client.call("audit_verify")["entries"] if options.verify else None
        entries = _latest(client, options.last)
        refused = client.call("server_info")["refused_messages"]
    if options.json:
        document = {"entries": entries, "verified": verified, "refused": refused}
        print_json(document, options.json)
        return 0
    rows = [
        [
            str(each["number"]),
            when(each["at"]),
            each["actor"],
            each["act"],
            each["subject"],
            ", ".join(f"{name}={value}" for name, value in each["detail"].items()),
        ]
        for each in entries
    ]
    print_table(["no", "time", "who", "what", "whom", "detail"], rows, "nothing was done yet")
    if refused:
        counts = ", ".join(f"{reason} {count}" for reason, count in sorted(refused.items()))
        print(f"\nRefused since the server's start: {counts}.")
    if verified is not None:
        print(
            f"\nThe log is as it was written: {verified} entries, each chained to the one before."
        )
    return 0


def _latest(client: OperatorClient, count: int) -> list[dict[str, Any]]:
    """Return the latest entries, the oldest first, page by page."""
    entries: list[dict[str, Any]] = []
    before: int | None = None
    while len(entries) < count:
        page = client.call("audit_ls", {"before": before})["entries"]
        if not page:
            break
        entries += page
        before = page[-1]["number"]
        if before == 1:
            break
    return entries[:count][::-1]
