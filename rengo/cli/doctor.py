"""``rengo doctor``: what is missing on this machine and how to mend it."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from rengo.cli.common import Commands, add_command, add_site, print_json
from rengo.doctor import diagnose


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "doctor", examine, "say what is missing and how to mend it")
    add_site(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def examine(options: argparse.Namespace) -> int:
    """Print the findings; 2 when something that is required is missing."""
    checks = diagnose(options.data_dir)
    healthy = all(check.ok or not check.required for check in checks)
    if options.json:
        print_json({"ok": healthy, "checks": [asdict(check) for check in checks]}, "-")
        return 0 if healthy else 2
    for check in checks:
        mark = "ok  " if check.ok else ("MISS" if check.required else "note")
        print(f"{mark}  {check.name}: {check.detail}")
        if check.mend:
            print(f"      mend: {check.mend}")
    print("All well." if healthy else "Mend what is marked MISS, then run this again.")
    return 0 if healthy else 2
