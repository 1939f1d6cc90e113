"""Which devices can train in a run now, and why the others do not."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from fl_server.members.presence import DevicePresence
from fl_server.operations.context import OperationsContext
from fl_server.operations.results.runs import MisfitCount, RunAddressed, RunMisfit
from fl_server.runs.definition import RunDefinition
from fl_server.selection.targets import Misfit, RunTarget
from fl_server.selection.traits import DeviceTraits
from runtime.errors import ConfigError

_CAUSES_SHOWN, _DEVICES_SHOWN, _REASON_CHARS = 32, 20, 300


@dataclass(frozen=True)
class Candidate:
    """A member of the site, with what is known of it; ``presence`` is None before it was here."""

    traits: DeviceTraits
    presence: DevicePresence | None


def addressed(
    run_id: str, definition: RunDefinition, candidates: Iterable[Candidate]
) -> RunAddressed:
    """Return who can train in a run now, and why the others do not, bounded however many."""
    target = definition.addressed
    causes: Counter[str] = Counter()
    first: list[RunMisfit] = []
    groups, devices = set(), 0
    for each in candidates:
        devices += 1
        groups.add(each.traits.group)
        misfit = _misfit(each, target, definition)
        if misfit is not None:
            causes[misfit.cause] += 1
            if len(first) < _DEVICES_SHOWN:
                first.append(RunMisfit(id=each.traits.id, reason=misfit.reason[:_REASON_CHARS]))
    counts = [
        MisfitCount(cause=cause[:_REASON_CHARS], devices=count)
        for cause, count in causes.most_common(_CAUSES_SHOWN)
    ]
    return RunAddressed(
        run_id=run_id,
        devices=devices,
        fitting=devices - causes.total(),
        causes=counts,
        first=first,
        note=_empty_groups(target, groups - {""}),
    )


def candidates(context: OperationsContext) -> Iterator[Candidate]:
    """Yield the site's devices that are not revoked, by id."""
    members, presence = context.members.devices, context.presence.devices
    for device_id in sorted(members.keys() | presence.keys()):
        member = members.get(device_id)
        if member is None or member.status == "active":
            yield Candidate(context.traits(device_id), presence.get(device_id))


def require_known(target: RunTarget, known: Iterable[str]) -> None:
    """Raise ConfigError where a target names a device that is not there, with the nearest name."""
    names = set(known)
    for name in target.device_names:
        if name not in names:
            near = difflib.get_close_matches(name, sorted(names), 1)
            hint = f"did you mean {near[0]}?" if near else "`rengo devices ls` lists them"
            raise ConfigError(f"target: there is no device or domain {name!r}; {hint}")


def _misfit(each: Candidate, target: RunTarget, definition: RunDefinition) -> Misfit | None:
    left_out = target.left_out(each.traits)
    if left_out is not None:
        return left_out
    if each.presence is None:
        return Misfit("never here", "has never been here")
    state = each.presence.state
    if state.role != "trainer":
        return Misfit("no trainers", f"is an {state.role}")
    task = definition.task
    if not state.can_run(task, bundled=definition.bundled):
        there = ", ".join(state.tasks)[:100] or "none"
        return Misfit(f"without task {task}", f"has not task {task!r}; its tasks: {there}")
    unmet = target.unmet(each.traits)
    if unmet is not None:
        return unmet
    if not each.presence.online:
        return Misfit("offline", f"is {each.presence.status}")
    if state.status == "draining":
        return Misfit("draining", "takes no orders now")
    return None


def _empty_groups(target: RunTarget, groups: set[str]) -> str:
    empty = [name for name in target.group_names if name not in groups]
    if not empty:
        return ""
    near = difflib.get_close_matches(empty[0], sorted(groups), 1)
    there = ", ".join(sorted(groups)[:10]) or "none"
    hint = f"did you mean {near[0]}?" if near else f"there are: {there}"
    return f"no device is in group {empty[0]}; {hint}"
