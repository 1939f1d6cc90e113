"""Whether the kernel killed a process for lack of memory, by its own counts. Light: no numpy."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

Verdict: TypeAlias = Literal["enough", "suspected", "short"]
# of the machine's memory; a killer in user space, which the kernel does not count, comes beyond it
_MUCH = 0.5


@dataclass
class OomKills:
    """Tells a kill for lack of memory from any other one. One thread uses it.

    Linux counts these kills: for the whole machine in ``/proc/vmstat``, and in version 2 of control
    groups also for our own group, whose count is not touched by other programs' kills.

    Args:
        root: where ``/proc`` and ``/sys`` lie.
    """

    root: Path = Path("/")
    _before: int | None = field(default=None, init=False)

    def begin(self) -> None:
        """Count from now on."""
        self._before = self._count()

    def verdict(self) -> Verdict:
        """Return whether a child that was killed by SIGKILL after ``begin`` lacked memory."""
        now = self._count()
        if now is None or self._before is None:
            return "suspected"
        if now > self._before:
            self._before = now
            return "short"
        return "suspected" if self._took_much() else "enough"

    def _count(self) -> int | None:
        for path in (self._group() / "memory.events", self.root / "proc/vmstat"):
            try:
                lines = path.read_text("ascii").splitlines()
            except OSError:
                continue
            for line in lines:
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
        return None

    def _group(self) -> Path:
        """Return the folder of our own control group of version 2."""
        try:
            lines = (self.root / "proc/self/cgroup").read_text("ascii").splitlines()
        except OSError:
            lines = []
        own = next((line[3:] for line in lines if line.startswith("0::")), "")
        return self.root / "sys/fs/cgroup" / own.lstrip("/")

    def _took_much(self) -> bool:
        """Return whether the largest child so far held much of the machine's memory."""
        try:
            lines = (self.root / "proc/meminfo").read_text("ascii").splitlines()
        except OSError:
            return True
        total = next((int(each.split()[1]) for each in lines if each.startswith("MemTotal:")), 0)
        unit = 1024 if sys.platform == "darwin" else 1
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // unit
        return peak > _MUCH * total
