"""``rengo algorithms``: what there is, what it costs, and what can be set."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from algorithms.description import Description, Explanation, describe, explain
from algorithms.registry import names
from algorithms.transforms import TRANSFORMS
from fl_server.aggregation.rules import RULES
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


BESIDE = {
    "rules": "Rules: how a round's updates become one, for devices that may send wrong ones",
    "transforms": "Transforms: what is done to updates, around any algorithm",
}
"""What goes with an algorithm, each kind with its title."""


def add(commands: Commands) -> None:
    """Add the command."""
    text = "list the algorithms, rules and transforms, or explain one"
    parser = add_command(commands, "algorithms", show, text)
    parser.add_argument("name", nargs="?", help="what to explain")
    parser.add_argument("--json", metavar="FILE", help="write one JSON document, - for stdout")


def show(options: argparse.Namespace) -> int:
    """Print the list, or what there is to say of one."""
    beside = explanations()
    if options.name:
        beside = {
            kind: [e for e in found if e.name == options.name] for kind, found in beside.items()
        }
    # an unknown name is told as one of an algorithm
    is_beside = options.name and any(beside.values())
    found = (
        [] if is_beside else [describe(n) for n in ([options.name] if options.name else names())]
    )
    if options.json is not None:
        listed = {kind: [asdict(each) for each in found] for kind, found in beside.items()}
        print_json({"algorithms": [asdict(each) for each in found], **listed}, options.json)
    elif not options.name:
        _list(found, beside)
    elif is_beside:
        for kind, (one,) in ((kind, found) for kind, found in beside.items() if found):
            _explain(one, "rule." if kind == "rules" else "")
    else:
        _explain(found[0], "algorithm.")
        print()
        for line in costs_in_words(found[0]):
            print(line)
    return 0


def explanations() -> dict[str, list[Explanation]]:
    """Return what there is to say of rules and of transforms, by their kind."""
    return {
        "rules": [explain(name, RULES.load(name)) for name in RULES.names()],
        "transforms": [explain(name, TRANSFORMS.load(name)) for name in TRANSFORMS.names()],
    }


def _list(found: list[Description], beside: dict[str, list[Explanation]]) -> None:
    for family, title in FAMILIES.items():
        rows = [
            [each.name, "" if len(each.engines) > 1 else f"{each.engines[0]} only", each.summary]
            for each in found
            if each.family == family
        ]
        print(f"{title}\n")
        print_table(["name", "engine", ""], rows, "none")
        print()
    for kind, title in BESIDE.items():
        print(f"{title}\n")
        print_table(["name", ""], [[each.name, each.summary] for each in beside[kind]], "none")
        print()
    print("Explain one: rengo algorithms NAME. Use one: rengo run TASK --set algorithm.name=NAME")
    print("""and --set rule.name=NAME, --set 'transforms=[{name="NAME"}]'""")


def _explain(found: Description | Explanation, prefix: str) -> None:
    for text in (found.summary, found.details, found.source):
        if text:
            print(f"{text}\n")
    rows = [[f"{prefix}{each.name}", str(each.default), each.bounds] for each in found.settings]
    print_table(["setting", "default", "allowed"], rows, "It has no settings.")


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
