"""What a device tells of its own data, in lines for a person."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

NOTEWORTHY = 0.2
_BAR_CHARS = 24


def drift_lines(report: Mapping[str, Any] | None) -> list[str]:
    """Return the lines of a ``DataReport``; none where the device has no data of its own."""
    if report is None or not report["tasks"]:
        return []
    return [line for data in report["tasks"] for line in _task_lines(data)]


def _task_lines(data: Mapping[str, Any]) -> Iterator[str]:
    least = data["min_count"]
    yield (
        f"data of {data['task']}: {_count(data['examples'], least)} examples, "
        f"{_count(data['held_out'], least)} of them held out, "
        f"{_count(data['refused'], least)} records refused (counts in steps of {least})"
    )
    for quantity in data["quantities"]:
        yield f"  {quantity['name']}{_change(quantity)}"
        total = sum(bar["count"] for bar in quantity["bars"])
        for bar in quantity["bars"]:
            share = bar["count"] / total if total else 0.0
            yield f"    {bar['name']:16} {bar['count']:7}  {'#' * round(share * _BAR_CHARS)}"


def _count(count: int, least: int) -> str:
    return f"about {count}" if count else f"fewer than {least}"


def _change(quantity: Mapping[str, Any]) -> str:
    now, before = quantity["psi_reference"], quantity["psi_previous"]
    if now is None or before is None:
        return ": no reference yet"
    text = f": PSI {now:.2f} since the first training, {before:.2f} since the last report"
    chance = quantity["by_chance"] or 0.0
    if now <= NOTEWORTHY:
        return text
    if now <= chance:
        return f"{text}; so few examples give up to {chance:.2f} by chance"
    return f"{text}\n    WARNING: these data have changed (PSI above {NOTEWORTHY:g})"
