"""A device's health, in lines for a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rengo.terminal.format import size

_UNKNOWN = "unknown"


def health_lines(health: Mapping[str, Any] | None) -> list[str]:
    """Return the lines of a health report, as ``DeviceHealth`` has it; what is None is unknown."""
    if health is None:
        return ["health         not reported yet"]
    facts = {
        "training": f"paused: {health['paused']}" if health["paused"] else "allowed",
        "temperature": _with_unit(health["temperature_c"], "°C", 1),
        "throttled": _names(health["throttled"]),
        "under-voltage": _yes_no(health["under_voltage"]),
        "load": _with_unit(health["load"], "of 1 per CPU", 2),
        "memory free": _size(health["memory_available_bytes"]),
        "disk free": _size(health["disk_free_bytes"]),
        "disk wear": _with_unit(health["disk_wear_percent"], "% of its life used", 0),
        "link": _link(health),
        "battery": _battery(health),
        "clock synced": _yes_no(health["clock_synced"]),
        "data left": "no limit" if health["data_left_bytes"] is None else _left(health),
    }
    return ["health", *(f"  {name:14} {text}" for name, text in facts.items())]


def _with_unit(value: float | None, unit: str, digits: int) -> str:
    return _UNKNOWN if value is None else f"{value:.{digits}f} {unit}"


def _yes_no(value: bool | None) -> str:
    return _UNKNOWN if value is None else ("yes" if value else "no")


def _names(names: list[str] | None) -> str:
    return _UNKNOWN if names is None else (", ".join(names) or "no")


def _size(count: int | None) -> str:
    return _UNKNOWN if count is None else size(count)


def _left(health: Mapping[str, Any]) -> str:
    return f"{size(health['data_left_bytes'])} today"


def _link(health: Mapping[str, Any]) -> str:
    if health["link"] is None:
        return _UNKNOWN
    signal = "" if health["link_dbm"] is None else f", {health['link_dbm']:.0f} dBm"
    metered = ", metered" if health["metered"] else ""
    return f"{health['link']}{signal}{metered}"


def _battery(health: Mapping[str, Any]) -> str:
    if health["battery_percent"] is None:
        return "none" if health["on_battery"] is False else _UNKNOWN
    return f"{health['battery_percent']} %" + (", discharging" if health["on_battery"] else "")
