"""Traces: when devices were online, read from a CSV file.

The columns are ``device``, ``from_s``, ``to_s``, ``online`` and, if wished, ``charging``; the last
two are 0 or 1. A device's rows follow each other in time, from 0 on and without gaps; rows of
several devices may be mixed. A client's device follows the trace of its number, and begins again
with the first when there are fewer traces than clients. A trace that has ended begins again.
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from rengo.simulation.virtual.availability import Period
from runtime.errors import ConfigError

MAX_LINES = 20_000_000
_NEEDED = ("device", "from_s", "to_s", "online")
_KNOWN = (*_NEEDED, "charging")
_FLAGS = {"0": False, "1": True}


@dataclass
class _Trace:
    """The rows of one device: where each ends, what it says, and the line of the last."""

    ends_s: list[float] = field(default_factory=list)
    online: list[bool] = field(default_factory=list)
    charging: list[bool] = field(default_factory=list)
    line: int = 0


class TracedAvailability:
    """The periods of a trace file."""

    def __init__(self, traces: Iterable[_Trace]) -> None:
        self._traces = list(traces)

    @property
    def devices(self) -> int:
        """How many devices were traced."""
        return len(self._traces)

    @property
    def digest(self) -> str:
        """See ``Availability``."""
        rows = [[trace.ends_s, trace.online, trace.charging] for trace in self._traces]
        return hashlib.sha256(repr(rows).encode()).hexdigest()

    def period(self, index: int, number: int, from_s: float) -> Period:
        """Return a device's period; see ``Availability``."""
        trace = self._traces[index % len(self._traces)]
        if len(trace.ends_s) == 1:
            return Period(math.inf, trace.online[0], trace.charging[0])
        turn, place = divmod(number, len(trace.ends_s))
        until_s = turn * trace.ends_s[-1] + trace.ends_s[place]
        # sums of fractions may fall behind by a rounding
        return Period(max(until_s, from_s), trace.online[place], trace.charging[place])


def read_traces(path: Path) -> TracedAvailability:
    """Return the availability that a CSV file says.

    Raises:
        ConfigError: one line with the file, the line, what is wrong and how to mend it.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            return TracedAvailability(_traces(lines, path))
    except FileNotFoundError as error:
        raise ConfigError(f"trace {path} does not exist") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"trace {path} cannot be read: {error}") from error


def _traces(lines: TextIO, path: Path) -> list[_Trace]:
    reader = csv.reader(lines, strict=True)
    traces: dict[str, _Trace] = {}
    try:
        columns = _columns(next(reader, []), path)
        for row in reader:
            if reader.line_num > MAX_LINES:
                raise _wrong(path, reader.line_num, f"a trace has at most {MAX_LINES} lines")
            if row:
                _add(row, columns, traces, (path, reader.line_num))
    except csv.Error as error:
        raise _wrong(path, reader.line_num, f"it is not CSV: {error}") from error
    if not any(any(trace.online) for trace in traces.values()):
        raise ConfigError(f"trace {path}: no device is ever online in it")
    return list(traces.values())


def _columns(header: list[str], path: Path) -> dict[str, int]:
    names = [name.strip() for name in header]
    columns = {name: place for place, name in enumerate(names)}
    missing = [name for name in _NEEDED if name not in columns]
    unknown = [name for name in names if name not in _KNOWN]
    if missing:
        wanted = ", ".join(_NEEDED)
        raise _wrong(path, 1, f"it has no column {missing[0]}; the first line names {wanted}")
    if unknown or len(columns) < len(names):
        which = f"{unknown[0]!r} is unknown" if unknown else "a column is named twice"
        raise _wrong(path, 1, f"{which}; the columns are {', '.join(_KNOWN)}")
    return columns


def _add(
    row: list[str], columns: dict[str, int], traces: dict[str, _Trace], at: tuple[Path, int]
) -> None:
    if len(row) != len(columns):
        raise _wrong(*at, f"it has {len(row)} values for {len(columns)} columns")
    cells = {name: row[place].strip() for name, place in columns.items()}
    device = cells["device"]
    if not device:
        raise _wrong(*at, "it names no device")
    from_s, to_s = _seconds(cells, "from_s", at), _seconds(cells, "to_s", at)
    online, charging = _flag(cells, "online", at), _flag(cells, "charging", at)
    if to_s <= from_s:
        raise _wrong(*at, f"to_s {to_s:g} is not after from_s {from_s:g}")
    trace = traces.setdefault(device, _Trace())
    _require_follows(trace, device, from_s, at)
    trace.line = at[1]
    if trace.ends_s and (trace.online[-1], trace.charging[-1]) == (online, charging):
        trace.ends_s[-1] = to_s
        return
    trace.ends_s.append(to_s)
    trace.online.append(online)
    trace.charging.append(charging)


def _require_follows(trace: _Trace, device: str, from_s: float, at: tuple[Path, int]) -> None:
    if not trace.ends_s:
        if from_s != 0:
            raise _wrong(*at, f"the first row of device {device} begins at {from_s:g} s, not at 0")
        return
    ended_s = trace.ends_s[-1]
    if from_s > ended_s:
        gap = f"nothing is said of {ended_s:g} to {from_s:g} s"
        raise _wrong(*at, f"device {device} has a gap after line {trace.line}: {gap}")
    if from_s < ended_s:
        what = f"its row begins at {from_s:g} s, and line {trace.line} ends at {ended_s:g} s"
        raise _wrong(*at, f"the rows of device {device} overlap or go back: {what}")


def _seconds(cells: dict[str, str], name: str, at: tuple[Path, int]) -> float:
    try:
        value = float(cells[name])
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and 0 <= value <= 1e12):
        raise _wrong(*at, f"{name} {cells[name]!r} is not a number of seconds, 0 or more")
    return value


def _flag(cells: dict[str, str], name: str, at: tuple[Path, int]) -> bool:
    text = cells.get(name, "0")
    if text not in _FLAGS:
        raise _wrong(*at, f"{name} {text!r} is neither 0 nor 1")
    return _FLAGS[text]


def _wrong(path: Path, line: int, what: str) -> ConfigError:
    return ConfigError(f"trace {path}, line {line}: {what}")
