"""``rengo algorithms``: what there is, what it costs, and what can be set."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from algorithms.description import Description, describe
from algorithms.registry import names
from rengo.cli.common import Commands, add_command, print_json
from rengo.terminal.tables import print_table

FAMILIES = {
    "server": "Averaging, and optimisers on the server",
    "drift": "Against the drift of clients whose data differ",
    "fairness": "Fairness to the clients that are served worst",
    "personal": "Personal models",
    "clusters": "Several global models",
    "widths": "Parts of one model, for devices that cannot train all of it",
    "adapters": "Adapters of a model that stays as it is",
}


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "algorithms", show, "list the algorithms, or explain one")
    parser.add_argument("name", nargs="?", help="the algorithm to explain")
    parser.add_argument("--json", metavar="FILE", help="write one JSON document, - for stdout")


def show(options: argparse.Namespace) -> int:
    """Print the list or one algorithm."""
    found = [describe(name) for name in ([options.name] if options.name else names())]
    if options.json is not None:
        print_json({"algorithms": [asdict(each) for each in found]}, options.json)
    elif options.name:
        _explain(found[0])
    else:
        _list(found)
    return 0


def _list(found: list[Description]) -> None:
    for family, title in FAMILIES.items():
        rows = [
            [each.name, "" if len(each.engines) > 1 else f"{each.engines[0]} only", each.summary]
            for each in found
            if each.family == family
        ]
        print(f"{title}\n")
        print_table(["name", "engine", ""], rows, "none")
        print()
    print("Explain one: rengo algorithms NAME. Use one: rengo run TASK --set algorithm.name=NAME")


def _explain(found: Description) -> None:
    for text in (found.summary, found.details, found.source):
        if text:
            print(f"{text}\n")
    rows = [[f"algorithm.{each.name}", str(each.default), each.bounds] for each in found.settings]
    print_table(["setting", "default", "allowed"], rows, "It has no settings.")
    print()
    for line in costs_in_words(found):
        print(line)


def costs_in_words(found: Description) -> list[str]:
    """Return sentences about what an algorithm costs and needs."""
    costs = found.costs
    lines = [
        f"A client downloads {_vectors(costs.down)} beside the model, and uploads "
        f"{_vectors(costs.up)}.",
        f"From round to round it keeps {_vectors(costs.device)}, and the server "
        f"{_vectors(costs.server)}.",
        f"A step takes {_counted(costs.gradients, 'gradient')}, and a round "
        f"{_counted(costs.passes, 'pass', 'passes')} over the client's data beside its steps.",
    ]
    if found.needs_updates:
        lines.append("The server keeps every update until a round's end, at most 1,000.")
    if found.family == "widths":
        lines.append("A client of less width downloads, trains and uploads as much less.")
    if "norms" in found.needs:
        lines.append("The model needs layers that normalise.")
    if "adapters" in found.needs:
        lines.append("The model needs low-rank adapters; of its other weights nothing is sent.")
    if "head" in found.needs:
        lines.append("The model's head is its last layer, or what the task names as `head`.")
    if found.engines == ("torch",):
        lines.append("It changes the loss, which only the torch engine can do.")
    return lines


def _vectors(count: int) -> str:
    return _counted(count, "vector") + (" of its size" if count else "")


def _counted(count: int, one: str, many: str = "") -> str:
    return f"{count or 'no'} {one if count == 1 else many or one + 's'}"
