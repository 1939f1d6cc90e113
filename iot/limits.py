"""Keeps training processes within their memory and their share of the processor, and pauses them.

By a control group where this process may create one. Else by a limit on what it may reserve and
a thread that measures it: it kills the process above its memory, and stops it while it has used up
its share. Linux only.
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
_MEASURE_S = 0.5
_MEASURE_BUSY_S = 0.05
# reserved and never used: stacks, allocator arenas, buffers of the maths libraries
_RESERVED_BYTES = 192 << 20
_OOM_SCORE = "800"


@dataclass
class CpuShare:
    """A token bucket that says when a process with ``share`` of a core must be stopped. Pure.

    The credit grows by ``share`` a second up to ``burst_s``, and shrinks by the time used.
    """

    share: float
    burst_s: float = 0.1
    _credit_s: float = field(init=False)
    _at_s: float | None = None
    _used_s: float = 0.0

    def __post_init__(self) -> None:
        self._credit_s = self.burst_s

    def charge(self, now_s: float, used_s: float) -> float:
        """Charge the processor time used so far; return how long to stop, 0 to go on."""
        if self._at_s is not None:
            grown = self._credit_s + (now_s - self._at_s) * self.share
            self._credit_s = min(self.burst_s, grown) - (used_s - self._used_s)
        self._at_s, self._used_s = now_s, used_s
        return max(0.0, -self._credit_s / self.share)


class Limiter:
    """Limits processes, of which one works at a time. One thread calls it.

    A control group holds all of them. By our own measure each is held by itself: with a limit on
    memory there must be no second one.
    """

    def __init__(self, budget: Budget, name: str, *, root: Path = Path("/")) -> None:
        self._budget = budget
        self._group = ControlGroup.create(f"rengo-{name}", budget, root=root)
        self._processes: list[_LimitedProcess] = []
        self._kills = 0 if self._group is None else self._group.oom_kills()
        self._paused = False

    @property
    def method(self) -> str:
        """By what the limits are enforced, for a person."""
        if self._budget.memory is None and self._budget.cpu_share is None:
            return "no limits"
        return "control group" if self._group is not None else "own measure"

    @property
    def has_process(self) -> bool:
        """Whether a limited process is running."""
        return any(not each.ended for each in self._processes)

    def limit(self, pid: int) -> None:
        """Limit this process, a child of ours and the leader of its group, until it ends."""
        if not hasattr(os, "pidfd_open"):
            _LOG.warning("this system cannot keep training within its limits")
            return
        try:
            descriptor = os.pidfd_open(pid)
        except OSError as error:
            _LOG.warning("training runs without limits: %s", error)
            return
        self._deprioritise(pid)
        if self._group is not None and not self._group.add(pid):
            self._group = None
        process = _LimitedProcess(pid, descriptor, self._budget, measured=self._group is None)
        process.set_paused(paused=self._paused)
        self._processes = [*(each for each in self._processes if not each.ended), process]

    def killed_for_memory(self) -> bool:
        """Return whether a process was killed for its memory since the last call."""
        if self._group is None:
            killed = [each for each in self._processes if each.exceeded_memory]
            self._processes = [each for each in self._processes if each not in killed]
            return bool(killed)
        kills, self._kills = self._kills, self._group.oom_kills()
        return self._kills > kills

    def set_paused(self, *, paused: bool) -> None:
        """Pause or resume all processes, and any that is limited later."""
        self._paused = paused
        for each in self._processes:
            each.set_paused(paused=paused)

    def close(self) -> None:
        """Stop limiting; processes that still run go on."""
        for each in self._processes:
            each.close()
        if self._group is not None:
            self._group.remove()

    def _deprioritise(self, pid: int) -> None:
        """Give the rest of the machine precedence; of all processes, the kernel kills it first."""
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


class _LimitedProcess:
    """One limited process until its end, measured by a thread of its own without a group."""

    def __init__(self, pid: int, descriptor: int, budget: Budget, *, measured: bool) -> None:
        self._pid = pid
        self._descriptor = descriptor
        self._memory = budget.memory if measured else None
        wanted = budget.cpu_share if measured else None
        self._share = None if wanted is None else CpuShare(wanted)
        self._lock = threading.Lock()
        self._paused = False
        self._stopped = False
        self._ended = False
        self.exceeded_memory = False
        self._thread: threading.Thread | None = None
        if self._memory is not None or self._share is not None:
            self._thread = threading.Thread(target=self._watch, name="limits", daemon=True)
            self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether the process has ended."""
        with self._lock:
            if not self._ended and self._has_ended(0.0):
                self._ended = True
                os.close(self._descriptor)
            return self._ended

    def set_paused(self, *, paused: bool) -> None:
        with self._lock:
            self._paused = paused
            self._set_stopped(stopped=paused)

    def close(self) -> None:
        self.set_paused(paused=False)
        with self._lock:
            if not self._ended:
                self._ended = True
                os.close(self._descriptor)
        if self._thread is not None:
            self._thread.join(2 * _MEASURE_S)

    def _watch(self) -> None:
        pause_s = 0.0
        while not self._is_over(pause_s):
            pause_s = self._measure()

    def _is_over(self, pause_s: float) -> bool:
        """Wait, and return whether the process has ended meanwhile."""
        return self._has_ended(pause_s) or self.ended

    def _has_ended(self, within_s: float) -> bool:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return bool(poll.poll(within_s * 1000))

    def _measure(self) -> float:
        """Measure once and act on it; return after how long to measure again."""
        resident = rss_bytes(self._pid) or 0
        if self._memory is not None and resident > self._memory:
            _LOG.warning(
                "training holds %d MiB, its limit is %d MiB: it is killed",
                resident >> 20,
                self._memory >> 20,
            )
            self.exceeded_memory = True
            with self._lock:
                self._signal(signal.SIGKILL)
            return _MEASURE_S
        if self._share is None:
            return _MEASURE_S
        stop_s = self._share.charge(time.monotonic(), cpu_s(self._pid))
        with self._lock:
            self._set_stopped(stopped=self._paused or stop_s > 0)
        return min(_MEASURE_S, stop_s or _MEASURE_BUSY_S)

    def _set_stopped(self, *, stopped: bool) -> None:
        if stopped != self._stopped:
            self._stopped = stopped
            self._signal(signal.SIGSTOP if stopped else signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        """Signal the process group, after its descriptor has shown that the pid is not reused."""
        if self._ended:
            return
        try:
            signal.pidfd_send_signal(self._descriptor, 0)
            os.killpg(self._pid, number)
        except ProcessLookupError:
            pass
        except PermissionError as error:
            _LOG.warning("training cannot be sent %s: %s", number.name, error)


def cpu_s(pid: int) -> float:
    """Return the processor time that a process has used, 0 when it has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return 0.0
    # the name, in brackets, may contain anything
    fields = text.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
