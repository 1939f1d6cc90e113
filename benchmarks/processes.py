"""What the kernel says of a process and its descendants (Linux)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Cost:
    """CPU seconds so far, ended children included; the sum of the living processes' peak RSS."""

    cpu_s: float
    peak_rss_bytes: int


def family(pid: int) -> list[psutil.Process]:
    """Return the process and its living descendants."""
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]


def cost(pid: int) -> Cost:
    """Return what the process and its descendants have cost."""
    while True:
        try:
            return _sum(family(pid))
        except psutil.NoSuchProcess as gone:
            if gone.pid == pid:
                raise  # a descendant that ended is counted by its parent when asked again


def _sum(processes: list[psutil.Process]) -> Cost:
    cpu_s, peak = 0.0, 0
    for process in processes:
        times = process.cpu_times()
        cpu_s += times.user + times.system + times.children_user + times.children_system
        peak += peak_rss_bytes(process.pid)
    return Cost(cpu_s, peak)


def peak_rss_bytes(pid: int) -> int:
    """Return VmHWM, or the present RSS where the kernel does not keep a peak."""
    status = Path(f"/proc/{pid}/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return int(psutil.Process(pid).memory_info().rss)
