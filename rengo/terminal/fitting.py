"""Why devices do not fit a run, in lines for a person. Pure."""

from __future__ import annotations

from fl_server.operations.results.runs import RunAddressed
from rengo.operator.progress import RunProgress
from rengo.terminal.format import count

_CAUSES, _DEVICES, _WHILE_WAITING = 8, 20, 5


def misfit_lines(found: RunAddressed, devices: int = _DEVICES) -> list[str]:
    """Return how many devices do not fit by each cause, and the reasons of the first of them."""
    lines = [found.note] if found.note else []
    lines += [f"{count(each.devices, 'device')}: {each.cause}" for each in found.causes[:_CAUSES]]
    lines += [f"  {each.id} {each.reason}" for each in found.first[:devices]]
    left = found.devices - found.fitting - len(found.first[:devices])
    if left > 0 and found.first:
        lines.append(f"  and {left} more")
    return lines or (["no device was ever admitted"] if not found.devices else [])


def misfits_of(follower: RunProgress) -> list[str]:
    """Return the same of a run that is short of devices, with fewer devices; else nothing."""
    found = follower.addressed
    if found is None or not follower.short_of_devices:
        return []
    return misfit_lines(found, _WHILE_WAITING)
