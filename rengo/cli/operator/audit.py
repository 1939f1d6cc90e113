"""``rengo audit``: who did what when."""

from __future__ import annotations

import argparse

from fl_server.operations.catalogue import AUDIT_LS, AUDIT_VERIFY, SERVER_INFO
from rengo.cli.common import Commands, add_command, add_site, connect, print_json
from rengo.terminal.lines import say
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
        verified = client.request(AUDIT_VERIFY).entries if options.verify else None
        latest = client.request(AUDIT_LS, {"last": options.last}).entries
        entries = latest[::-1]
        refused = client.request(SERVER_INFO).refused_messages
    if options.json:
        document = {
            "entries": [each.document() for each in entries],
            "verified": verified,
            "refused": refused,
        }
        print_json(document, options.json)
        return 0
    rows = [
        [
            str(each.number),
            when(each.at),
            each.actor,
            each.act,
            each.subject,
            ", ".join(f"{name}={value}" for name, value in each.detail.items()),
        ]
        for each in entries
    ]
    print_table(["no", "time", "who", "what", "whom", "detail"], rows, "nothing was done yet")
    if refused:
        counts = ", ".join(f"{reason} {count}" for reason, count in sorted(refused.items()))
        say("", f"Refused since the server's start: {counts}.")
    if verified is not None:
        print(
            f"\nThe log is as it was written: {verified} entries, each chained to the one before."
        )
    return 0
