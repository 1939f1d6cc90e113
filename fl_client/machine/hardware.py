"""This machine's hardware and software, found without importing torch or numpy."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fl_client.machine import accelerators

_PACKAGES = ("rengo", "numpy", "torch", "paho-mqtt")
_CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


@dataclass(frozen=True)
class Hardware:
    """A machine's hardware and software.

    Attributes:
        model: the board's or the processor's name.
        cpus: the number that this process may use.
        ram_bytes: the machine's memory, or the limit of this process's control group if that is
            less; 0 if unknown.
        accelerators: for example ``cuda:0 NVIDIA H100``; found by their drivers, which needs no
            memory for a library.
        engines: the engines whose library is installed.
    """

    model: str
    machine: str
    system: str
    cpus: int
    ram_bytes: int
    accelerators: list[str]
    engines: list[str]
    versions: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def describe() -> Hardware:
    """Return this machine's hardware and software."""
    return Hardware(
        model=_model(),
        machine=platform.machine(),
        system=f"{platform.system()} {platform.release()}",
        cpus=_cpus(),
        ram_bytes=ram_bytes(),
        accelerators=[str(each) for each in accelerators.of_this_machine()],
        engines=available_engines(),
        versions={"python": platform.python_version(), **_versions()},
    )


def available_engines() -> list[str]:
    """Return the engines that can run here, the best first."""
    return [name for name in ("torch", "numpy") if _is_installed(name)]


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:
        return False


def _model() -> str:
    board = Path("/proc/device-tree/model")
    if board.exists():
        return board.read_text(errors="replace").strip("\0 \n")
    return platform.processor() or platform.machine()


def _cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def ram_bytes() -> int:
    """Return the machine's memory, or its control group's where that is less; 0 is unknown."""
    names = os.sysconf_names
    if not {"SC_PAGE_SIZE", "SC_PHYS_PAGES"} <= names.keys():
        return 0
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in _CGROUP_LIMITS:
        if path.exists() and (text := path.read_text().strip()).isdecimal():
            limits.append(int(text))
    return min(limits)


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        # a package may be absent
        if any(importlib.metadata.distributions(name=package)):
            found[package] = importlib.metadata.version(package)
    return found
