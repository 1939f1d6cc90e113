"""The tree of a site in lines for a person, for a terminal and a file alike. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fl_server.operations.results.topology import TopologyNode, TopologyRun
from rengo.terminal.format import count, size

_ONLINE = frozenset({"online", "ready", "training", "draining"})


@dataclass(frozen=True)
class Branches:
    """What lines are drawn with."""

    child: str
    last: str
    beside: str
    below: str = "   "


UNICODE = Branches("├─ ", "└─ ", "│  ")
ASCII = Branches("|- ", "`- ", "|  ")


@dataclass(frozen=True)
class TreeLine:
    """One line: of a node, or of what is said below it.

    Attributes:
        status: of the node, "" of other lines.
    """

    tree: str
    status: str = ""
    text: str = ""

    @property
    def is_up(self) -> bool:
        """Whether the node is online."""
        return self.status in _ONLINE


def tree_lines(nodes: Sequence[TopologyNode], branches: Branches = UNICODE) -> list[TreeLine]:
    """Return the tree's lines, each node before what is below it."""
    below: dict[str, list[TopologyNode]] = {}
    known = {node.path for node in nodes}
    for node in nodes:
        if node.parent:
            below.setdefault(_nearest(node.parent, known), []).append(node)
    return [
        line
        for node in nodes
        if not node.parent
        for line in _subtree(node, "", "", below, branches)
    ]


def table(lines: Sequence[TreeLine]) -> list[str]:
    """Return the lines in columns."""
    wide = max((len(line.tree) for line in lines if line.status), default=0)
    status = max((len(line.status) for line in lines), default=0)
    return [f"{line.tree:{wide}}  {line.status:{status}}  {line.text}".rstrip() for line in lines]


def _nearest(path: str, known: set[str]) -> str:
    """Return the nearest node above; a domain in between may be one that is not told of."""
    while path not in known and "/" in path:
        path = path.rpartition("/")[0]
    return path


def _subtree(
    node: TopologyNode,
    head: str,
    rest: str,
    below: Mapping[str, Sequence[TopologyNode]],
    branches: Branches,
) -> Iterator[TreeLine]:
    children = below.get(node.path, ())
    yield TreeLine(f"{head}{node.id}", node.status, _said(node))
    beside = branches.beside if children or node.hidden else branches.below
    for run in node.runs:
        yield TreeLine(f"{rest}{beside}", "", _run(run))
    more = _hidden(node)
    for number, child in enumerate(children, 1):
        is_last = number == len(children) and not more
        mark, indent = (
            (branches.last, branches.below) if is_last else (branches.child, branches.beside)
        )
        yield from _subtree(child, f"{rest}{mark}", f"{rest}{indent}", below, branches)
    if more:
        yield TreeLine(f"{rest}{branches.last}{more}")


def _said(node: TopologyNode) -> str:
    parts = []
    if node.kind != "device":
        parts.append(f"{node.online} of {count(node.devices, 'device')} online")
    if node.role == "evaluator":
        parts.append("evaluator")
    elif node.profile and node.kind == "device":
        parts.append(node.profile)
    if node.group:
        parts.append(f"group {node.group}")
    if node.doing == "owes":
        parts.append(f"awaited by {node.run_id}")
    elif node.doing == "answered":
        parts.append(f"has answered {node.run_id}")
    if node.bytes_up or node.bytes_down:
        parts.append(f"{size(node.bytes_up)} up, {size(node.bytes_down)} down")
    return "; ".join(parts)


def _run(run: TopologyRun) -> str:
    of = f" of {run.rounds}" if run.rounds else ""
    text = f"{run.run_id}: round {run.round}{of}, {run.phase}"
    if run.cohort:
        text += f", {run.answered} of {run.cohort} answered"
    if run.waiting_for:
        more = run.waiting - len(run.waiting_for)
        names = ", ".join(run.waiting_for) + (f" and {more} more" if more > 0 else "")
        text += f"; waits for {names}"
    elif run.waiting:
        text += f"; waits for {count(run.waiting, 'device')}"
    return text


def _hidden(node: TopologyNode) -> str:
    if not node.hidden:
        return ""
    if node.kind == "domain":
        return (
            f"{count(node.hidden, 'device')} that {'is' if node.hidden == 1 else 'are'} not named"
        )
    statuses = ", ".join(f"{number} {name}" for name, number in sorted(node.statuses.items()))
    return f"and {node.hidden} more (in all {statuses})"
