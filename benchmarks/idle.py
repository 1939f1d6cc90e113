"""What an agent that waits costs, from real processes: memory, processor, start, and a no-op round.

    python -m benchmarks.idle [--seconds 60] [--rounds 20] [--json FILE]

The site is the product's. The agent is `rengo iot`, started as systemd would start it: its READY=1
ends the start. The round's processor time is of the agent and its
training process together, which is warm.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from benchmarks.processes import cost
from rengo.device.status import ask_status
from rengo.device.systemd import ServiceUnit
from rengo.operator.runs import follow, submit, wait_for_devices
from rengo.site.site import Site

_TASK = f"{Path(__file__).with_name('perturb.py')}:Noop"
_NAME = "device-1"
_FEW = 3
_START_S = 60.0
BARS = {
    "ready_s": 1.5,
    "idle_rss_mib": 45.0,
    "after_rounds_rss_mib": 45.0,
    "idle_cpu_percent": 0.5,
    "round_cpu_s": 0.05,
}


@dataclass(frozen=True)
class Idle:
    """The figures.

    Attributes:
        idle_rss_mib: of an agent that has waited since its start.
        after_rounds_rss_mib: of the same when its training process has gone again.
    """

    ready_s: float
    start_cpu_s: float
    idle_rss_mib: float
    after_rounds_rss_mib: float
    idle_peak_rss_mib: float
    idle_cpu_percent: float
    round_cpu_s: float
    agent_round_cpu_s: float


def measure(seconds: float, rounds: int) -> Idle:
    """Return the figures of one agent on a site of its own."""
    with Site(devices=1) as site, _manager() as (address, manager):
        began = time.perf_counter()
        agent = _start(site, address)
        try:
            while "READY=1" not in manager.recv(4096).decode().splitlines():
                pass
            ready_s = time.perf_counter() - began
            time.sleep(2.0)
            start_cpu_s = _cpu_s([agent.pid])
            time.sleep(seconds)
            idle_cpu_s = _cpu_s([agent.pid]) - start_cpu_s
            idle_mib = _status_mib(agent.pid, "VmRSS")
            figures = _rounds(site, agent.pid, rounds)
            return Idle(
                ready_s=ready_s,
                start_cpu_s=start_cpu_s,
                idle_rss_mib=idle_mib,
                idle_peak_rss_mib=_status_mib(agent.pid, "VmHWM"),
                idle_cpu_percent=100 * idle_cpu_s / seconds,
                after_rounds_rss_mib=_after(site, agent.pid),
                **figures,
            )
        finally:
            agent.terminate()
            agent.wait()


@contextmanager
def _manager() -> Iterator[tuple[str, socket.socket]]:
    name = f"rengo-idle-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}")
        manager.settimeout(_START_S)
        yield f"@{name}", manager


def _start(site: Site, address: str) -> subprocess.Popen[bytes]:
    root = site.folder.root
    argv = [sys.executable, "-m", "rengo", "iot", "--task", _TASK]
    argv += ["--identity", str(site.folder.identity_path(_NAME)), "--data-dir", str(_folder(site))]
    own = {"NOTIFY_SOCKET": address, "RENGO_AGENT_KEEP_WARM_S": "3"}
    environment = os.environ | _of_the_unit() | own
    with (root / "logs" / f"{_NAME}.log").open("wb") as log:
        return subprocess.Popen(argv, env=environment, stdout=log, stderr=log)


def _of_the_unit() -> dict[str, str]:
    """Return what systemd sets for an agent."""
    unit = ServiceUnit("iot", Path(sys.executable), Path("agent.toml"), Path("data")).text()
    lines = [line.partition("=") for line in unit.splitlines()]
    words = [word for key, _, value in lines if key == "Environment" for word in value.split()]
    return dict(word.split("=", 1) for word in words)


def _folder(site: Site) -> Path:
    return site.folder.root / "devices" / _NAME


def _rounds(site: Site, pid: int, rounds: int) -> dict[str, float]:
    """Return what a round costs: a long run less a short one, so that starts do not count."""
    with site.connect() as client:
        wait_for_devices(client, [_NAME], _START_S)
        costs = []
        for count in (_FEW, _FEW + rounds):
            before, own = cost(pid).cpu_s, _cpu_s([pid])
            follow(client, submit(client, _TASK, {"rounds": count}))
            _after(site, pid)
            costs.append((cost(pid).cpu_s - before, _cpu_s([pid]) - own))
    (few_s, few_own_s), (many_s, many_own_s) = costs
    return {
        "round_cpu_s": (many_s - few_s) / rounds,
        "agent_round_cpu_s": (many_own_s - few_own_s) / rounds,
    }


def _after(site: Site, pid: int) -> float:
    """Return the agent's memory, in MiB, once its training process has gone."""
    deadline = time.monotonic() + _START_S
    while ask_status(_folder(site))["training_process"] is not None:
        if time.monotonic() > deadline:
            raise TimeoutError("the training process stayed")
        time.sleep(0.2)
    return _status_mib(pid, "VmRSS")


def _cpu_s(pids: list[int]) -> float:
    """Return what the processes' threads have used, those that have ended included."""
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids)


def _status_mib(pid: int, name: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"the kernel does not tell {name}")


def main() -> None:
    """Measure, print the figures beside their bars, and end with 1 where one is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long it waits")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    figures = asdict(measure(options.seconds, options.rounds))
    missed = [name for name, bar in BARS.items() if figures[name] > bar]
    for name, value in figures.items():
        bar = f"  (bar {BARS[name]:g})" if name in BARS else ""
        print(f"{name:22} {value:8.3f}{bar}{'  MISSED' if name in missed else ''}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
