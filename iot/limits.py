"""Keeps a training process within its memory and its share of the processor, and lets it rest.

A control group does it where one may be made; else a limit on what the process may reserve, and a
thread that looks at what it holds and stops it while it has had its share. Linux only.
"""

from __future__ import annotations

import logging
import os
import resource
import select
import signal
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from iot.cgroups import ControlGroup
from iot.profile import Budget
from runtime.processes.rss import rss_bytes

_LOG = logging.getLogger(__name__)
_LOOK_S = 0.5
_LOOK_BUSY_S = 0.05
# what a process reserves and never touches: stacks, arenas, buffers of the mathematics
_RESERVED_BYTES = 192 << 20
_OOM_SCORE = "800"


@dataclass
class Share:
    """Says when a process that is to have ``share`` of a core must stand still. Pure.

    What it may use grows by ``share`` a second up to ``burst_s``, and shrinks by what it uses.
    """

    share: float
    burst_s: float = 0.1
    _credit_s: float = field(init=False)
    _at_s: float | None = None
    _used_s: float = 0.0

    def __post_init__(self) -> None:
        self._credit_s = self.burst_s

    def take(self, now_s: float, used_s: float) -> float:
        """Take what was used so far; return how long to stand still, 0 to go on."""
        if self._at_s is not None:
            grown = self._credit_s + (now_s - self._at_s) * self.share
            self._credit_s = min(self.burst_s, grown) - (used_s - self._used_s)
        self._at_s, self._used_s = now_s, used_s
        return max(0.0, -self._credit_s / self.share)


class Limiter:
    """Holds one process at a time. ``adopt``, ``rest`` and ``close`` belong to one thread."""

    def __init__(self, budget: Budget, name: str, *, root: Path = Path("/")) -> None:
        self._budget = budget
        self._group = ControlGroup.made(f"rengo-{name}", budget, root=root)
        self._held: _Held | None = None
        self._kills = 0 if self._group is None else self._group.oom_kills()
        self._resting = False

    @property
    def how(self) -> str:
        """By what the limits are kept, for a person."""
        if self._budget.memory is None and self._budget.cpu_share is None:
            return "no limits"
        return "control group" if self._group is not None else "own measure"

    @property
    def holds(self) -> bool:
        """Whether there is a process now."""
        return self._held is not None and not self._held.ended

    def adopt(self, pid: int) -> None:
        """Keep this process, a child of ours and the leader of its group, until it ends."""
        if not hasattr(os, "pidfd_open"):
            _LOG.warning("this system cannot keep training within its limits")
            return
        try:
            descriptor = os.pidfd_open(pid)
        except OSError as error:
            _LOG.warning("training runs without limits: %s", error)
            return
        self._lower(pid)
        if self._group is not None and not self._group.add(pid):
            self._group = None
        self._held = _Held(pid, descriptor, self._budget, measured=self._group is None)
        self._held.rest(resting=self._resting)

    def ran_short(self) -> bool:
        """Return whether the process was ended because of its memory, since the last question."""
        if self._group is None:
            return self._held is not None and self._held.took_too_much
        kills, self._kills = self._kills, self._group.oom_kills()
        return self._kills > kills

    def rest(self, *, resting: bool) -> None:
        """Let the process stand still, and one that is adopted later, or go on."""
        self._resting = resting
        if self._held is not None:
            self._held.rest(resting=resting)

    def close(self) -> None:
        """Let go; a process that is still there goes on."""
        if self._held is not None:
            self._held.close()
        if self._group is not None:
            self._group.remove()

    def _lower(self, pid: int) -> None:
        """Stand behind the rest of the machine, also when its memory runs out."""
        try:
            if self._budget.nice:
                os.setpriority(os.PRIO_PGRP, pid, self._budget.nice)
            Path(f"/proc/{pid}/oom_score_adj").write_text(_OOM_SCORE, "ascii")
            if self._budget.memory is not None and self._group is None:
                most = self._budget.memory + _RESERVED_BYTES
                _, hard = resource.prlimit(pid, resource.RLIMIT_DATA)
                if hard == resource.RLIM_INFINITY or hard > most:
                    resource.prlimit(pid, resource.RLIMIT_DATA, (most, hard))
        except (OSError, ValueError) as error:
            _LOG.warning("training runs without some of its limits: %s", error)


class _Held:
    """One process from its adoption to its end, watched by a thread of its own."""

    def __init__(self, pid: int, descriptor: int, budget: Budget, *, measured: bool) -> None:
        self._pid = pid
        self._descriptor = descriptor
        self._memory = budget.memory if measured else None
        wanted = budget.cpu_share if measured else None
        self._share = None if wanted is None else Share(wanted)
        self._lock = threading.Lock()
        self._resting = False
        self._stopped = False
        self._ended = False
        self.took_too_much = False
        self._thread: threading.Thread | None = None
        if self._memory is not None or self._share is not None:
            self._thread = threading.Thread(target=self._watch, name="limits", daemon=True)
            self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether the process has gone."""
        with self._lock:
            if not self._ended and self._has_ended(0.0):
                self._ended = True
                os.close(self._descriptor)
            return self._ended

    def rest(self, *, resting: bool) -> None:
        with self._lock:
            self._resting = resting
            self._set_stopped(stopped=resting)

    def close(self) -> None:
        self.rest(resting=False)
        with self._lock:
            if not self._ended:
                self._ended = True
                os.close(self._descriptor)
        if self._thread is not None:
            self._thread.join(2 * _LOOK_S)

    def _watch(self) -> None:
        pause_s = 0.0
        while not self._is_over(pause_s):
            pause_s = self._look()

    def _is_over(self, pause_s: float) -> bool:
        """Wait, and return whether the process has ended meanwhile."""
        return self._has_ended(pause_s) or self.ended

    def _has_ended(self, within_s: float) -> bool:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return bool(poll.poll(within_s * 1000))

    def _look(self) -> float:
        """Measure once; return when to look again."""
        held = rss_bytes(self._pid) or 0
        if self._memory is not None and held > self._memory:
            _LOG.warning(
                "training holds %d MiB of its %d MiB: it is ended",
                held >> 20,
                self._memory >> 20,
            )
            self.took_too_much = True
            with self._lock:
                self._signal(signal.SIGKILL)
            return _LOOK_S
        if self._share is None:
            return _LOOK_S
        still_s = self._share.take(time.monotonic(), cpu_s(self._pid))
        with self._lock:
            self._set_stopped(stopped=self._resting or still_s > 0)
        return min(_LOOK_S, still_s or _LOOK_BUSY_S)

    def _set_stopped(self, *, stopped: bool) -> None:
        if stopped != self._stopped:
            self._stopped = stopped
            self._signal(signal.SIGSTOP if stopped else signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        """Signal the whole group, by a process that is certainly still the one that was adopted."""
        if self._ended:
            return
        try:
            signal.pidfd_send_signal(self._descriptor, 0)
            os.killpg(self._pid, number)
        except ProcessLookupError:
            pass
        except PermissionError as error:
            _LOG.warning("training cannot be told %s: %s", number.name, error)


def cpu_s(pid: int) -> float:
    """Return the processor time that a process has used, 0 when it has gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return 0.0
    # the name, in brackets, may hold anything
    fields = text.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
