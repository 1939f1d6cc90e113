"""What a simulation holds in memory, and whether it grows over its rounds.

    python -m benchmarks.simulate_memory [NAME ...]

Each case is a process of its own. Prints its peak; the most that it held between rounds in the
third quarter and in the last, when what is kept of data and states has filled its bound; and its
rate. Fails where a bar is not met.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from fl_client.training.work import peak_rss_bytes
from runtime.processes.rss import rss_bytes

MIB = 1 << 20
GROWTH_MIB = 16


@dataclass(frozen=True)
class Case:
    """One simulation and the memory that it may take."""

    task: str
    clients: int
    cohort: int
    rounds: int
    most_mib: int
    settings: dict[str, Any] = field(default_factory=dict)
    fleet: str = ""


_SHORT = {"training": {"local_epochs": 1, "max_steps": 5}, "evaluation": {"every": 50}}
_SCAFFOLD = {**_SHORT, "algorithm": {"name": "scaffold"}}
CASES = {
    "mnist-1000": Case("mnist", 1_000, 10, 200, 350, _SHORT),
    "synthetic-100000": Case("synthetic", 100_000, 10, 200, 1000, _SHORT),
    "synthetic-100000-scaffold": Case("synthetic-2nn", 100_000, 50, 80, 1000, _SCAFFOLD),
    "synthetic-100000-fleet": Case("synthetic", 100_000, 10, 200, 1000, _SHORT, "phone=80,pi-4=20"),
}


def measure(case: Case) -> None:
    """Run one case in this process and print what it held."""
    from rengo.simulation.definition import Simulation, prepare  # noqa: PLC0415
    from rengo.simulation.run import run_prepared  # noqa: PLC0415

    settings = {**case.settings, "rounds": case.rounds, "cohort": {"size": case.cohort}}
    simulation = Simulation(case.task, settings, case.clients, fleet=case.fleet)
    held: dict[int, int] = dict.fromkeys(range(case.rounds + 1), 0)
    begun_s = time.perf_counter()
    prepared = prepare(simulation)
    first_s = time.perf_counter() - begun_s

    def progress(coordinator: Any, history: Any) -> None:
        del history
        held[coordinator.machine.ledger.model.version] = rss_bytes(os.getpid()) or 0

    begun_s = time.perf_counter()
    found = run_prepared(prepared, progress=progress)
    told = {
        "peak_mib": peak_rss_bytes() / MIB,
        "third_mib": max(held[n] for n in range(case.rounds // 2, case.rounds * 3 // 4)) / MIB,
        "last_mib": max(held[n] for n in range(case.rounds * 3 // 4, case.rounds + 1)) / MIB,
        "prepared_s": first_s,
        "round_ms": (time.perf_counter() - begun_s) * 1000 / case.rounds,
        "backend": found.choice.name,
    }
    print(json.dumps(told))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(CASES))
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        measure(Case(**json.loads(options.case)))
        return 0
    failed = 0
    for name in options.names or CASES:
        case = CASES[name]
        command = [sys.executable, "-m", "benchmarks.simulate_memory"]
        given = [*command, "--case", json.dumps(asdict(case))]
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(given, capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            print(f"{name}: failed\n{done.stderr}")
            failed += 1
            continue
        told = json.loads(done.stdout.splitlines()[-1])
        grown = told["last_mib"] - told["third_mib"]
        is_met = told["peak_mib"] <= case.most_mib and grown <= GROWTH_MIB
        failed += not is_met
        print(
            f"{name:26} peak {told['peak_mib']:6.0f} MiB of {case.most_mib}, "
            f"{told['third_mib']:6.0f} in the third quarter, {told['last_mib']:6.0f} in the last, "
            f"{told['prepared_s']:5.1f} s to prepare, {told['round_ms']:7.1f} ms a round, "
            f"{told['backend']}{'' if is_met else '  <- above its bar'}"
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
