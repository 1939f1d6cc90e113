"""Counts the bytes that went over the network within the last 24 hours.

Time is the machine's uptime with sleep, in slots of one hour, not the wall clock. How long the
machine was off comes from the wall clock, but only if that is synchronised now and was when the
file was written. Else the time off counts as none, so that a wrong clock never frees data.

To spare flash memory the file states more than was spent: a crash can cost a part of the day's
data but never adds any, and a day writes the file some forty times at most.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from runtime.files import atomic_write

_LOG = logging.getLogger(__name__)
# when the oldest hour is dropped, it began at least 24 hours ago
_SLOTS = 25
_SLOT_S = 3600.0
_AHEAD = 16
_AHEAD_BYTES = 64 << 10
_Count = Annotated[int, Field(ge=0)]


class _StoredBudget(BaseModel):
    """The file. ``boot_id`` and ``boot_s`` give the time that has passed within one boot."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, defer_build=True)

    slots: Annotated[list[_Count], Field(min_length=_SLOTS, max_length=_SLOTS)]
    into_slot_s: Annotated[float, Field(ge=0, le=_SLOT_S)]
    boot_id: str
    boot_s: float
    clock_s: float
    clock_synced: bool


def _boot_s() -> float:
    # Linux counts sleep too
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""


@dataclass(frozen=True)
class Clocks:
    """The clocks that the counting uses.

    Attributes:
        boot_s: seconds since the machine started; they never go back.
        boot_id: differs after each start; "" where the system has none.
        wall_s: the wall clock, right or wrong.
        synced: whether the wall clock is known to be right.
    """

    boot_s: Callable[[], float] = _boot_s
    boot_id: Callable[[], str] = _boot_id
    wall_s: Callable[[], float] = time.time
    synced: Callable[[], bool] = lambda: False


@dataclass
class _Hours:
    """Bytes by the hour in which they were sent or received, the latest first."""

    slots: list[int] = field(default_factory=lambda: [0] * _SLOTS)
    into_slot_s: float = 0.0

    def advance(self, seconds: float) -> bool:
        """Move on by so much time; return whether a new hour has begun."""
        whole, self.into_slot_s = divmod(self.into_slot_s + seconds, _SLOT_S)
        fresh = min(_SLOTS, int(whole))
        self.slots = [*([0] * fresh), *self.slots][:_SLOTS]
        return fresh > 0


class DataBudget:
    """Counts bytes within 24 hours. ``spend`` may be called on any thread, the rest on one.

    Args:
        path: the file that outlives a restart.
        limit: bytes within 24 hours.
    """

    def __init__(self, path: Path, limit: int, clocks: Clocks | None = None) -> None:
        self._path = path
        self._limit = limit
        self._clocks = clocks or Clocks()
        self._lock = threading.Lock()
        self._now = _Hours()
        # of earlier processes: only for these bytes can time have passed that is not known yet
        self._before = _Hours()
        self._off_since_s: float | None = None
        self._began_s = self._at_s = self._clocks.boot_s()
        self._covered = 0  # what the file states for this process's current hour
        self._load()

    def spend(self, count: int) -> None:
        """Count bytes; the file is written only when it states too few."""
        with self._lock:
            self._advance()
            self._now.slots[0] += count
            if self._now.slots[0] > self._covered:
                self._write(self._now.slots[0] + max(_AHEAD_BYTES, self._limit // _AHEAD))

    def left_bytes(self) -> int:
        """Return how many bytes may still be sent or received now."""
        with self._lock:
            self._advance()
            return max(0, self._limit - sum(self._now.slots) - sum(self._before.slots))

    def close(self) -> None:
        """Write the true count."""
        with self._lock:
            self._advance()
            if self._covered > self._now.slots[0]:
                self._write(self._now.slots[0])

    def _advance(self) -> None:
        self._count_off_time()
        now_s = self._clocks.boot_s()
        passed_s, self._at_s = max(0.0, now_s - self._at_s), now_s
        self._before.advance(passed_s)
        if self._now.advance(passed_s):
            self._covered = 0

    def _count_off_time(self) -> None:
        """Count the time that the machine was off, once the wall clock is known to be right."""
        if self._off_since_s is None or not self._clocks.synced():
            return
        up_s = self._clocks.boot_s() - self._began_s
        off_s = self._clocks.wall_s() - up_s - self._off_since_s
        self._off_since_s = None
        self._before.advance(max(0.0, off_s))

    def _load(self) -> None:
        try:
            kept = _StoredBudget.model_validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return
        except (OSError, ValidationError) as error:
            _LOG.warning(
                "%s is not usable, the count of today's data begins at 0: %s", self._path, error
            )
            return
        self._before = _Hours(list(kept.slots), kept.into_slot_s)
        if kept.boot_id and kept.boot_id == self._clocks.boot_id():
            self._before.advance(max(0.0, self._at_s - kept.boot_s))
        elif kept.clock_synced:
            self._off_since_s = kept.clock_s

    def _write(self, covered: int) -> None:
        mine = [covered, *self._now.slots[1:]]
        kept = _StoredBudget(
            slots=[one + other for one, other in zip(mine, self._before.slots, strict=True)],
            # the smaller of the two, so that nothing is dropped too early
            into_slot_s=min(self._now.into_slot_s, self._before.into_slot_s),
            boot_id=self._clocks.boot_id(),
            boot_s=self._at_s,
            clock_s=self._clocks.wall_s(),
            clock_synced=self._clocks.synced(),
        )
        try:
            atomic_write(self._path, json.dumps(kept.model_dump()).encode())
        except OSError as error:
            # the count in memory is still right; a full disk must not end a transfer
            _LOG.warning("the count of today's data cannot be written: %s", error)
        self._covered = covered
