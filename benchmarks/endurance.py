"""Many rounds of a real agent that trains nothing: what it holds must not grow.

    python -m benchmarks.endurance [--rounds 500] [--json FILE]

The site is the product's: real broker, real store, a server process, one agent and its training
process. After every tenth of the rounds the kernel is asked what both hold, and the agent's folder
is looked at. Exits with 1 when something grew after the first fifth.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sqlite3
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from rengo.operator.client import OperatorClient
from rengo.operator.runs import submit, wait_for_devices
from rengo.site.device_process import DeviceSpec
from rengo.site.site import Site

_TASK = f"{Path(__file__).with_name('perturb.py')}:PerturbSmall"
_DEVICE = "device-1"
_START_S, _ROUND_S = 60.0, 60.0
# an allocator's noise; a page kept a round would be 2 MiB in 500 rounds
_NOISE_BYTES = 1 << 20


@dataclass(frozen=True)
class Sample:
    """What an agent, its training process and its folder hold after a round."""

    round: int
    agent_rss_bytes: int
    agent_fds: int
    agent_threads: int
    child_rss_bytes: int
    child_fds: int
    child_threads: int
    files: int
    folder_bytes: int
    rows: int


def look(round_number: int, agent: psutil.Process, folder: Path) -> Sample:
    """Return what is held now."""
    children = [each for each in agent.children() if "fl_client.training" in each.cmdline()]
    files = [path for path in folder.rglob("*") if path.is_file()]
    return Sample(
        round_number,
        agent.memory_info().rss,
        agent.num_fds(),
        agent.num_threads(),
        sum(each.memory_info().rss for each in children),
        sum(each.num_fds() for each in children),
        sum(each.num_threads() for each in children),
        len(files),
        sum(_size(path) for path in files),
        _rows(folder / "jobs.sqlite"),
    )


def growth(samples: list[Sample]) -> list[str]:
    """Return what grew from the first fifth of the samples to the last.

    A sample may fall into a round, when a few files and a connection more are there: so the most of
    the first fifth is compared with the least of the last.
    """
    part = max(1, len(samples) // 5)
    first = [asdict(each) for each in samples[:part]]
    last = [asdict(each) for each in samples[-part:]]
    found = []
    for name in first[0]:
        before = max(each[name] for each in first)
        after = min(each[name] for each in last)
        noise = _NOISE_BYTES if name.endswith("rss_bytes") else 0
        if name != "round" and name != "folder_bytes" and after > before + noise:
            found.append(f"{name} grew from {before} to {after}")
    return found


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _rows(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        count: int = database.execute("SELECT count(*) FROM jobs").fetchone()[0]
    return count


def measure(rounds: int) -> list[Sample]:
    """Return ten samples, the last when the last round begins, on a site of its own."""
    with Site() as site, site.connect() as client:
        site.start_devices([DeviceSpec(_DEVICE, engine="numpy")], _TASK)
        wait_for_devices(client, [_DEVICE], _START_S)
        agent = psutil.Process(site.children[_DEVICE].pid)
        folder = site.folder.root / "devices" / _DEVICE
        cohort = {"size": 1, "quorum": 1, "deadline_s": 300.0}
        values = {"cohort": cohort, "evaluation": {"on": "none"}, "rounds": rounds}
        run_id = submit(client, _TASK, values)
        samples = []
        for mark in sorted({max(1, (rounds - 1) * tenth // 10) for tenth in range(1, 11)}):
            wait_for_round(client, run_id, mark + 1)
            samples.append(look(mark, agent, folder))
            print_row(samples[-1])
        wait_for_round(client, run_id, rounds + 1)
    return samples


def wait_for_round(client: OperatorClient, run_id: str, number: int) -> None:
    """Return when the run is at a round, or has ended."""
    while True:
        for news in client.news(_ROUND_S):
            message = news.message
            if getattr(message, "run_id", "") != run_id:
                continue
            if getattr(message, "status", "") in {"completed", "stopped", "failed"}:
                return
            if getattr(message, "round", 0) >= number:
                return


def print_row(row: Sample) -> None:
    """Print one sample."""
    print(
        f"round {row.round:5}: agent {row.agent_rss_bytes / 2**20:6.1f} MiB "
        f"{row.agent_fds:3} fds {row.agent_threads:2} threads; training "
        f"{row.child_rss_bytes / 2**20:6.1f} MiB {row.child_fds:3} fds {row.child_threads:2} "
        f"threads; folder {row.files:3} files {row.folder_bytes / 1024:7.0f} KiB {row.rows} rows",
        flush=True,
    )


def main() -> int:
    """Measure, print and judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--json", type=Path, help="write the samples as JSON")
    options = parser.parse_args()
    samples = measure(options.rounds)
    if options.json:
        rows = [asdict(each) for each in samples]
        options.json.write_text(json.dumps(rows, indent=2) + "\n")
    grown = growth(samples)
    print("\n".join(grown) or "nothing grew")
    return 1 if grown else 0


if __name__ == "__main__":
    sys.exit(main())
