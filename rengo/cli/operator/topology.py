"""``rengo topology``: the tree of a site, live on a terminal."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TextIO

from fl_server.operations.catalogue import TOPOLOGY
from fl_server.operations.results.topology import Topology
from rengo.cli.codes import DONE
from rengo.cli.common import Commands, add_command, add_site, connect, interruptible, print_json
from rengo.operator.client import OperatorClient
from rengo.terminal.lines import say
from rengo.terminal.topology import ASCII, UNICODE, Branches, table, tree_lines
from runtime.errors import ConfigError

_LISTED = 100
_LOOK_EVERY_S = 2.0


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands, "topology", run, "draw the tree of domains and devices, live on a terminal"
    )
    add_site(parser)
    parser.add_argument(
        "--limit",
        type=int,
        default=_LISTED,
        metavar="N",
        help=f"how many members of each server are listed, the awaited first (default: {_LISTED})",
    )
    parser.add_argument("--once", action="store_true", help="draw it once, also on a terminal")
    parser.add_argument("--json", metavar="FILE", help="write one JSON document, - for stdout")


def run(options: argparse.Namespace) -> int:
    """Print the tree, or show it until interrupted."""
    if options.limit < 0:
        raise ConfigError(f"--limit {options.limit}: list 0 members or more")
    out = sys.stdout
    with connect(options) as client:
        if options.json:
            print_json(_tree(client, options).document(), options.json)
        elif options.once or not out.isatty():
            say(*table(tree_lines(_tree(client, options).nodes, branches_of(out))))
        else:
            _follow(client, lambda: _tree(client, options), out)
    return DONE


def _tree(client: OperatorClient, options: argparse.Namespace) -> Topology:
    return client.request(TOPOLOGY, {"limit": options.limit})


def branches_of(out: TextIO) -> Branches:
    """Return what the tree can be drawn with there."""
    return UNICODE if "utf" in (out.encoding or "").lower() else ASCII


def _follow(client: OperatorClient, tree: Callable[[], Topology], out: TextIO) -> None:
    from rengo.terminal.live_tree import LiveTree  # noqa: PLC0415  rich is for terminals alone

    try:
        with interruptible(), LiveTree(out) as shown:
            while True:
                shown.update(tree_lines(tree().nodes, branches_of(out)))
                for _ in client.news(_LOOK_EVERY_S):
                    pass  # what else comes on this connection is not shown
    except KeyboardInterrupt:
        return
