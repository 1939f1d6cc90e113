"""A constrained device on this machine: cgroup v1 limits and a slow, lossy link, as root (Linux).

The device's processes share one memory group, one share of the CPU and a network namespace of
their own, which a veth pair joins to this machine. All of it goes when the block ends.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

_CGROUPS = Path("/sys/fs/cgroup")
_CONTROLLERS = ("memory", "cpu", "cpuacct")
_TOOLS = {"ip": "iproute2", "tc": "iproute2", "nft": "nftables", "nsenter": "util-linux"}
_PERIOD_US = 100_000
_BURST = "16kbit"
_QUEUE = "400ms"  # as long as a packet waits in a device's queue before it is dropped
_EMPTY_S = 10.0


@dataclass(frozen=True)
class Limits:
    """What the device has; ``loss`` is the share of packets lost each way."""

    memory_bytes: int
    cpu_share: float = 0.25
    rate_bps: int = 1_000_000
    loss: float = 0.1


@dataclass(frozen=True)
class Used:
    """What the kernel counted for the device; bytes are those on the link, from its side."""

    max_usage_bytes: int
    oom_kills: int
    cpu_s: float
    throttled_s: float
    bytes_down: int
    bytes_up: int


def group_folders(proc_cgroup: str, name: str, root: Path = _CGROUPS) -> dict[str, Path]:
    """Return the folder of a new group for each controller, below this process's own.

    Args:
        proc_cgroup: what ``/proc/self/cgroup`` says.

    >>> group_folders("4:memory:/a\\n2:cpu,cpuacct:/\\n", "x")["memory"].as_posix()
    '/sys/fs/cgroup/memory/a/x'
    """
    folders = {}
    for line in proc_cgroup.splitlines():
        _, names, path = line.split(":", 2)
        for each in names.split(","):
            if each in _CONTROLLERS:
                folders[each] = root / each / path.strip("/") / name
    return folders


def missing(proc_cgroup: str, *, root: bool) -> list[str]:
    """Return what this machine lacks for a cage, each with what to do; empty when nothing."""
    lacks = [] if root else ["root, for groups and namespaces: run it by sudo"]
    lacks += [
        f"{tool}: apt-get install {package}"
        for tool, package in _TOOLS.items()
        if shutil.which(tool) is None
    ]
    folders = group_folders(proc_cgroup, ".")
    lacks += [
        f"the {each} controller of cgroup v1 (boot with systemd.unified_cgroup_hierarchy=0)"
        for each in _CONTROLLERS
        if each not in folders or not (folders[each] / "cgroup.procs").exists()
    ]
    return lacks


class Cage:
    """One device's limits; use as a context manager.

    Args:
        number: which of 64 pairs of addresses (10.213.77.0/24) the link takes.
    """

    def __init__(self, limits: Limits, number: int = 0) -> None:
        self.limits = limits
        self._name = f"rengo-{os.getpid()}-{number}"
        self._outer, self._inner = f"rgo{number}-{os.getpid()}"[:15], "link0"
        self.address = f"10.213.77.{4 * number + 1}"
        """Of this machine, as the device sees it."""
        self._inside = f"10.213.77.{4 * number + 2}"
        self._groups = group_folders(Path("/proc/self/cgroup").read_text(), self._name)

    def __enter__(self) -> Self:
        try:
            self._make_groups()
            self._make_link()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._remove()

    def argv(self, *command: str) -> list[str]:
        """Return the command line that runs ``command`` within the limits."""
        enter = " && ".join(f'echo $$ > "{each}/cgroup.procs"' for each in self._groups.values())
        # not `ip netns exec`: it hides the groups, which an agent looks at
        network = ("nsenter", f"--net=/run/netns/{self._name}")
        return ["sh", "-c", f'{enter} && exec "$@"', "sh", *network, *command]

    def pids(self) -> list[int]:
        """Return the processes within, also those in groups that the agent has made below."""
        found: list[int] = []
        for folder in self._nested("memory"):
            with contextlib.suppress(FileNotFoundError):  # the agent may remove it at this moment
                found += [int(each) for each in (folder / "cgroup.procs").read_text().split()]
        return found

    def oom_kills(self) -> int:
        """Return how many processes were killed in groups that are still there."""
        kills = 0
        for folder in self._nested("memory"):
            with contextlib.suppress(FileNotFoundError):
                kills += _table(folder / "memory.oom_control").get("oom_kill", 0)
        return kills

    def used(self) -> Used:
        """Return what has been used so far."""
        memory, cpu = self._groups["memory"], self._groups["cpu"]
        link = Path("/sys/class/net") / self._outer / "statistics"
        return Used(
            int((memory / "memory.max_usage_in_bytes").read_text()),
            self.oom_kills(),
            int((self._groups["cpuacct"] / "cpuacct.usage").read_text()) / 1e9,
            _table(cpu / "cpu.stat").get("throttled_time", 0) / 1e9,
            int((link / "tx_bytes").read_text()),
            int((link / "rx_bytes").read_text()),
        )

    def stat(self, name: str) -> int:
        """Return a line of the group's memory.stat, for example ``total_rss``."""
        return _table(self._groups["memory"] / "memory.stat")[name]

    def _nested(self, controller: str) -> list[Path]:
        """Return the group and those below it, the deepest first."""
        top = self._groups[controller]
        return [*sorted((each for each in top.rglob("*") if each.is_dir()), reverse=True), top]

    def _make_groups(self) -> None:
        for folder in self._groups.values():
            folder.mkdir(exist_ok=True)  # cpu and cpuacct may be one mount
        memory, cpu = self._groups["memory"], self._groups["cpu"]
        limit = str(self.limits.memory_bytes)
        (memory / "memory.limit_in_bytes").write_text(limit)
        with_swap = memory / "memory.memsw.limit_in_bytes"
        if with_swap.exists():
            with_swap.write_text(limit)
        (cpu / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
        (cpu / "cpu.cfs_quota_us").write_text(str(int(self.limits.cpu_share * _PERIOD_US)))

    def _make_link(self) -> None:
        name, outer, inner = self._name, self._outer, self._inner
        inside = ("ip", "-n", name)
        _run("ip", "netns", "add", name)
        _run("ip", "link", "add", outer, "type", "veth", "peer", "name", inner, "netns", name)
        _run("ip", "address", "add", f"{self.address}/30", "dev", outer)
        _run(*inside, "address", "add", f"{self._inside}/30", "dev", inner)
        for command, device in ((("ip",), outer), (inside, inner), (inside, "lo")):
            _run(*command, "link", "set", device, "up")
        rate = ("tbf", "rate", f"{self.limits.rate_bps}bit", "burst", _BURST, "latency", _QUEUE)
        _run("tc", "qdisc", "add", "dev", outer, "root", *rate)
        _run("tc", "-n", name, "qdisc", "add", "dev", inner, "root", *rate)
        rules = loss_rules(inner, self.limits.loss)
        _run("nsenter", f"--net=/run/netns/{name}", "nft", "-f", "-", text=rules)

    def _remove(self) -> None:
        self._end_processes()
        # with the namespace go its end of the link, so also ours, its queues and its rules
        _quietly("ip", "netns", "delete", self._name)
        _quietly("ip", "link", "delete", self._outer)
        for controller in self._groups:
            for folder in self._nested(controller):
                with contextlib.suppress(FileNotFoundError):
                    folder.rmdir()

    def _end_processes(self) -> None:
        deadline = time.monotonic() + _EMPTY_S
        while pids := self.pids():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > deadline:
                raise TimeoutError(f"the processes {pids} do not end")
            time.sleep(0.02)  # the kernel tells nobody when a group is empty


def loss_rules(device: str, loss: float) -> str:
    """Return nftables rules that lose a share of a device's packets each way."""
    drop = f"numgen random mod 1000 < {round(loss * 1000)} counter drop"
    chains = "\n".join(
        f"  chain {hook} {{ type filter hook {hook} device {device} priority 0; {drop}; }}"
        for hook in ("ingress", "egress")
    )
    return f"table netdev loss {{\n{chains}\n}}\n"


def _table(path: Path) -> dict[str, int]:
    lines = (line.split() for line in path.read_text().splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) == 2}


def _run(*argv: str, text: str | None = None) -> None:
    done = subprocess.run(argv, check=False, capture_output=True, text=True, input=text)
    if done.returncode:
        raise OSError(f"{' '.join(argv)}: {done.stderr.strip() or done.returncode}")


def _quietly(*argv: str) -> None:
    """Run what fails when there is nothing left to do."""
    subprocess.run(argv, check=False, capture_output=True)
