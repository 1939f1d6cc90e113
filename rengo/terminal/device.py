"""What is known of a device, in lines for a person."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fl_server.operations.results.members import DeviceRow
from rengo.terminal.drift import drift_lines
from rengo.terminal.format import size
from rengo.terminal.health import health_lines
from rengo.terminal.tables import when

_WIDTH = 14
_REPORTS = ("info", "health", "data_report", "last_decline")
_NAMES = {
    "operator_labels": "labels given",
    "admitted_at": "admitted",
    "ram_bytes": "memory",
    "boot_id": "boot",
}


def device_lines(device: DeviceRow) -> list[str]:
    """Return the lines of one device: as a member, by its own reports, what it last declined."""
    found = device.document()
    info, health, data, declined = (found.pop(name, None) for name in _REPORTS)
    facts = {**found, **(info or {})}
    return [
        *(f"{_name(key):{_WIDTH}} {_shown(key, value)}" for key, value in facts.items()),
        *health_lines(health),
        *drift_lines(data),
        *_decline_lines(declined),
    ]


def _decline_lines(declined: Mapping[str, Any] | None) -> Iterator[str]:
    if declined is None:
        return
    yield "last declined"
    what = "evaluation" if declined["action"] == "evaluate" else "round"
    order = f"{what} {declined['round']} of {declined['run_id']}, {when(declined['at'])}"
    for name, text in (("order", order), ("reason", declined["reason"])):
        yield f"  {name:{_WIDTH}} {text}"
    yield from (f"  | {line}" for line in declined["traceback"])


def _name(key: str) -> str:
    return _NAMES.get(key, key.replace("_", " "))


def _shown(key: str, value: Any) -> str:
    if key == "admitted_at":
        return when(value)
    if key == "rotating":
        return "yes, a new password is on its way" if value else "no"
    if key == "compute":
        return ", ".join(_compute(each) for each in value) or "-"
    return _plain(key, value)


def _plain(key: str, value: Any) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case None | "":
            return "-"
        case int() if key.endswith("_bytes"):
            return size(value)
        case Mapping():
            return ", ".join(_pairs(value)) or "-"
        case list() | tuple():
            return ", ".join(_plain(key, each) for each in value) or "-"
    return str(value)


def _pairs(values: Mapping[str, Any]) -> Iterator[str]:
    for key, value in values.items():
        yield f"{_name(key)} {_plain(key, value)}"


def _compute(on: Mapping[str, Any]) -> str:
    parts = (on["name"], on.get("model"), on.get("precision") and f"({on['precision']})")
    return " ".join(part for part in parts if part)
