"""What the operation on the tree of a site returns. Pure."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fl_server.operations.arguments import Name
from fl_server.operations.results.base import Count, Listing, OperationResult, Short

MAX_WAITING_SHOWN = 10
Waiting = Annotated[list[Name], Field(max_length=MAX_WAITING_SHOWN)]
Statuses = Annotated[dict[Short, Count], Field(max_length=16)]


class TopologyRun(OperationResult):
    """How far a server is with a run.

    Attributes:
        rounds: 0 where it is not known, as below a domain.
        waiting: how many devices owe an answer in the open round.
        waiting_for: the first of them by id, where they may be named.
    """

    run_id: Name
    task: Short = ""
    phase: Short
    round: Count
    rounds: Count = 0
    cohort: Count
    answered: Count
    waiting: Count
    waiting_for: Waiting = Field(default_factory=list)


Runs = Annotated[list[TopologyRun], Field(max_length=16)]


class TopologyNode(OperationResult):
    """A server, a domain or a device of the tree.

    Attributes:
        path: its own and its parents' ids, with a / between; of the root its id.
        parent: the path of the one above, "" for the root.
        status: as `rengo devices ls` has it; of the root "online".
        run_id: the run whose open round it takes part in, "" where in none.
        doing: what it does for that round.
        bytes_up: what it has moved to its parent for orders since the parent's start.
        bytes_down: what it has moved from there.
        devices: how many devices are below it, on all levels; 0 for a device.
        online: how many of them are online.
        statuses: how many of its own members have each status.
        hidden: how many of those are not in the list: of the root its own members, of a domain all
            devices below it.
        runs: that its own server is at.
    """

    path: Annotated[str, Field(max_length=640)]
    parent: Annotated[str, Field(max_length=640)]
    id: Name
    kind: Literal["platform", "domain", "device"]
    status: Short
    role: Short = ""
    profile: Short = ""
    group: Short = ""
    run_id: Annotated[str, Field(max_length=64)] = ""
    doing: Literal["", "owes", "answered"] = ""
    bytes_up: Count = 0
    bytes_down: Count = 0
    devices: Count = 0
    online: Count = 0
    statuses: Statuses = Field(default_factory=dict)
    hidden: Count = 0
    runs: Runs = Field(default_factory=list)


class Topology(Listing):
    """The tree, each node before what is below it."""

    rows_key, id_key = "nodes", "path"
    nodes: Annotated[list[TopologyNode], Field(max_length=1_000_000)]
