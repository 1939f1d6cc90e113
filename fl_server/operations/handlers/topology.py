"""The tree of a site: who is up, who is waited for, and what each link has moved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from broker.wire.messages import RunDocument, TreeMember, TreeSummary
from fl_server.operations import catalogue
from fl_server.operations.arguments import TopologyOf
from fl_server.operations.call import Binding, Call
from fl_server.operations.context import OperationsContext
from fl_server.operations.results.topology import (
    MAX_WAITING_SHOWN,
    Topology,
    TopologyNode,
    TopologyRun,
)

_RUNS_SHOWN = 16
_ONLINE = frozenset({"ready", "training", "draining"})


class TopologyOperations:
    """The operation on the tree."""

    def __init__(self, context: OperationsContext) -> None:
        self._context = context

    def bindings(self) -> Sequence[Binding[Any, Any]]:
        """Return what carries it out."""
        return (Binding(catalogue.TOPOLOGY, self.topology),)

    def topology(self, wanted: TopologyOf, _: Call) -> Topology:
        """Return the tree: of each server's members those first that something is awaited of."""
        documents = list(self._documents())
        root = self._context.domain
        members = [self._member(root, device_id, documents) for device_id in self._ids()]
        members.sort(key=_interest)
        shown, statuses = members[: wanted.limit], Counter(each.status for each in members)
        devices = [each for each in members if each.kind == "device"]
        domains = [each for each in members if each.kind == "domain"]
        top = TopologyNode(
            path=root,
            parent="",
            id=root,
            kind="platform",
            status="online",
            devices=len(devices) + sum(each.devices for each in domains),
            online=sum(each.status in _ONLINE for each in devices)
            + sum(each.online for each in domains),
            statuses=statuses,
            hidden=len(members) - len(shown),
            runs=[_run(each) for each in documents[:_RUNS_SHOWN]],
        )
        nodes = [top]
        for node in shown:
            below = self._below(node, wanted.limit)
            listed = sum(each.kind == "device" for each in below)
            hidden = max(0, node.devices - listed)
            nodes += [node.model_copy(update={"hidden": hidden}), *below]
        return Topology(nodes=nodes)

    def _ids(self) -> list[str]:
        members, presence = self._context.members.devices, self._context.presence.devices
        known = members.keys() | presence.keys()
        return [each for each in known if each not in members or members[each].status == "active"]

    def _documents(self) -> Iterator[RunDocument]:
        """Yield what is said of each run that goes on, the latest first."""
        runs = self._context.runs
        for run_id in reversed(runs.submitted()):
            flow = runs.flows[run_id]
            document = None if flow.ended else flow.document(runs.epoch)
            if document is not None:
                yield document

    def _member(self, root: str, device_id: str, documents: Sequence[RunDocument]) -> TopologyNode:
        context = self._context
        traits, present = context.traits(device_id), context.presence.devices.get(device_id)
        moved, info = context.traffic.of(device_id), traits.info
        open_round = next((each for each in documents if device_id in each.cohort), None)
        tree = None if info is None else info.tree
        return TopologyNode(
            path=f"{root}/{device_id}",
            parent=root,
            id=device_id,
            kind="device" if tree is None else "domain",
            status="enrolled" if present is None else present.status,
            role="" if present is None else present.state.role,
            profile="" if info is None else info.profile[:256],
            group=traits.group,
            run_id="" if open_round is None else open_round.run_id,
            doing="" if open_round is None else _doing(device_id, open_round),
            bytes_up=moved.up,
            bytes_down=moved.down,
            **(_summary(tree) if tree is not None else {}),
        )

    def _below(self, node: TopologyNode, limit: int) -> list[TopologyNode]:
        info = self._context.presence.info(node.id)
        if info is None or info.tree is None:
            return []
        named = sorted(info.tree.members, key=lambda each: each.path)
        return [_named(node.path, each) for each in named[:limit]]


def _doing(device_id: str, document: RunDocument) -> Any:
    return "answered" if device_id in document.answered else "owes"


def _interest(node: TopologyNode) -> tuple[int, str]:
    """Return where a member stands: what is waited for, domains, what works, all others."""
    if node.doing == "owes":
        return 0, node.id
    if node.kind == "domain":
        return 1, node.id
    return (2 if node.status == "training" else 3), node.id


def _run(document: RunDocument) -> TopologyRun:
    collects = document.phase == "collecting"
    owing = sorted(set(document.cohort) - set(document.answered)) if collects else []
    return TopologyRun(
        run_id=document.run_id,
        task=document.task[:256],
        phase=document.phase[:256],
        round=document.round,
        rounds=document.rounds,
        cohort=len(document.cohort),
        answered=len(document.answered),
        waiting=len(owing),
        waiting_for=owing[:MAX_WAITING_SHOWN],
    )


def _summary(tree: TreeSummary) -> Mapping[str, Any]:
    """Return what a domain says is below it, as fields of its node."""
    runs = [
        TopologyRun(
            run_id=each.run_id,
            phase=each.phase,
            round=each.round,
            cohort=each.cohort,
            answered=each.answered,
            waiting=max(0, each.cohort - each.answered) if each.phase == "collecting" else 0,
        )
        for each in tree.runs[:_RUNS_SHOWN]
    ]
    return {
        "devices": tree.devices,
        "online": tree.online,
        "statuses": Counter(each.status for each in tree.members if len(each.path) == 1),
        "runs": runs,
    }


def _named(above: str, member: TreeMember) -> TopologyNode:
    *between, own = member.path
    parent = "/".join([above, *between])
    return TopologyNode(
        path=f"{parent}/{own}",
        parent=parent,
        id=own,
        kind="domain" if member.domain else "device",
        status=member.status,
    )
