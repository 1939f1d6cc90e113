"""How an operator labels and groups devices, at any time: the runs that go on are told at once."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from fl_server.members.rules import AuditEvent
from fl_server.operations import catalogue
from fl_server.operations.arguments import MAX_LABELS, Grouping, Labelling
from fl_server.operations.call import Binding, Call
from fl_server.operations.context import OperationsContext
from fl_server.operations.results.members import Grouped, Labelled, LabelledDevices
from runtime.errors import ConfigError, NotFound


class LabelOperations:
    """The operations by which runs are to choose their devices."""

    def __init__(self, context: OperationsContext) -> None:
        self._context = context
        self._members, self._labels = context.members, context.labels

    def bindings(self) -> Sequence[Binding[Any, Any]]:
        """Return what carries out each operation."""
        return (
            Binding(catalogue.DEVICES_LABEL, self.devices_label),
            Binding(catalogue.DEVICES_GROUP, self.devices_group),
        )

    def devices_label(self, wanted: Labelling, call: Call) -> LabelledDevices:
        """Give devices labels and take others from them, all or none; says what theirs are now."""
        both = sorted(wanted.labels.keys() & set(wanted.remove))
        if both:
            raise ConfigError(f"label {both[0]} cannot be set and removed at once")
        self._require_active(wanted.device_ids)
        found = {each: _relabelled(self._labels.of(each), wanted) for each in wanted.device_ids}
        for device_id, labels in found.items():
            if len(labels) > MAX_LABELS:
                raise ConfigError(f"{device_id} would have {len(labels)} labels, at most 64")
        changed = {each: new for each, new in found.items() if new != self._labels.of(each)}
        detail = {"labels": dict(wanted.labels), "removed": list(wanted.remove)}
        acts = [AuditEvent(call.caller, "labels changed", each, detail) for each in changed]
        done = LabelledDevices(devices=[Labelled(id=each, labels=found[each]) for each in found])
        if changed:
            with call.together(lambda: done):
                self._labels.write(acts, changed)
        for device_id in changed:
            self._context.traits_changed(device_id)
        return done

    def devices_group(self, wanted: Grouping, call: Call) -> Grouped:
        """Put devices into a group, all or none."""
        self._require_active(wanted.device_ids)
        ids = list(dict.fromkeys(wanted.device_ids))
        done = Grouped(devices=ids, group=wanted.group)
        changed = [each for each in ids if self._members.devices[each].group != wanted.group]
        if changed:
            with call.together(lambda: done):
                self._members.regroup(call.caller, changed, wanted.group)
        for device_id in changed:
            self._context.traits_changed(device_id)
        return done

    def _require_active(self, device_ids: Sequence[str]) -> None:
        active = {name for name, each in self._members.devices.items() if each.status == "active"}
        for device_id in device_ids:
            if device_id not in active:
                near = difflib.get_close_matches(device_id, sorted(active), 1)
                hint = f"did you mean {near[0]}?" if near else "`rengo devices ls` lists them"
                raise NotFound(f"no active device {device_id!r}; {hint}")


def _relabelled(before: Mapping[str, str], wanted: Labelling) -> dict[str, str]:
    kept = {name: value for name, value in before.items() if name not in wanted.remove}
    return kept | wanted.labels
