"""What is below a domain, from its server's own records. Called on the server's owner thread."""

from __future__ import annotations

import hashlib
import hmac
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from broker.wire.messages import (
    MAX_TREE_DEPTH,
    MAX_TREE_MEMBERS,
    TreeMember,
    TreeRun,
    TreeSummary,
)
from fl_server.members.presence import DevicePresence
from fl_server.server import Server
from rengo.domain.flow import DomainFlow
from runtime.bounds import total
from runtime.security.signing import SecretKey

_MAX_TASKS, _MAX_RUNS, _MAX_VERSIONS = 64, 16, 16
_SHOWN = frozenset({"ready", "training", "draining", "asked", "late", "offline", "lost"})


@dataclass(frozen=True)
class TreeView:
    """What the parent is told: see ``TreeSummary``.

    Attributes:
        tasks: what any device here has.
        accepting: whether a device here takes orders to train.
    """

    summary: TreeSummary
    tasks: tuple[str, ...]
    accepting: bool


def view_of(server: Server, *, names: bool) -> TreeView:
    """Return what is below a domain now.

    Args:
        names: whether its parent may learn what devices are called.
    """
    active = {each.id for each in server.members.devices.values() if each.status == "active"}
    known = [server.presence.devices.get(device_id) for device_id in sorted(active)]
    here = [each for each in known if each is not None]
    trees = [each.info.tree for each in here if each.info is not None and each.info.tree]
    domains = [each for each in here if each.state.domain]
    versions = Counter(
        each.info.versions.get("rengo", "unknown")
        for each in here
        if each.info is not None and not each.state.domain
    )
    for tree in trees:
        versions.update(dict(tree.versions))
    own = len(active) - len(domains)
    summary = TreeSummary(
        server=server.members.key_text,
        devices=own + sum(tree.devices for tree in trees),
        online=sum(each.online and not each.state.domain for each in here)
        + sum(tree.online for each, tree in _online_trees(domains)),
        domains=len(domains) + sum(tree.domains for tree in trees),
        depth=min(MAX_TREE_DEPTH, 1 + max((tree.depth for tree in trees), default=0)),
        versions={name[:64]: count for name, count in versions.most_common(_MAX_VERSIONS)},
        refused=total([*server.gate.refused.values(), *(tree.refused for tree in trees)]),
        runs=list(_runs(server))[-_MAX_RUNS:],
        members=list(_members(here))[:MAX_TREE_MEMBERS] if names else [],
    )
    tasks = sorted({task for each in here for task in each.state.tasks})[:_MAX_TASKS]
    accepting = any(
        each.online and each.state.role == "trainer" and each.state.status != "draining"
        for each in here
    )
    return TreeView(summary, tuple(tasks), accepting)


def hidden_name(key: SecretKey, run_id: str, device_id: str) -> str:
    """Return a name for a device in a run which tells nothing, and is the same one each time."""
    text = f"{run_id}/{device_id}".encode()
    return hmac.new(key.text.encode(), text, hashlib.sha256).hexdigest()[:32]


def _online_trees(domains: list[DevicePresence]) -> Iterator[tuple[DevicePresence, TreeSummary]]:
    for each in domains:
        if each.online and each.info is not None and each.info.tree is not None:
            yield each, each.info.tree


def _runs(server: Server) -> Iterator[TreeRun]:
    for run_id, flow in server.runner.of(DomainFlow).items():
        ledger = flow.machine.ledger
        if not flow.ended:
            yield TreeRun(
                run_id=run_id,
                round=ledger.round,
                phase=ledger.phase,
                cohort=len(ledger.cohort),
                answered=len(ledger.answered),
            )


def _members(here: list[DevicePresence]) -> Iterator[TreeMember]:
    for each in here:
        if each.status in _SHOWN:
            yield TreeMember(
                path=[each.id],
                status=each.status,  # type: ignore[arg-type]
                domain=each.state.domain,
            )
        tree = None if each.info is None else each.info.tree
        for below in () if tree is None else tree.members:
            if len(below.path) < MAX_TREE_DEPTH:
                yield below.model_copy(update={"path": [each.id, *below.path]})
