"""What runs that have ended cost, and their versions: start, memory and a list.

    python -m benchmarks.history [--runs 10 100 10000] [--devices 20] [--rounds 50] [--json FILE]

One run is written by the journal, with all its facts, and becomes history; its rows are then copied
under other names. Each number of runs is measured in a process of its own, which opens the journal
as a server does, and reads three versions of each run from a store that makes them up. For
comparison: what opening one such run costs, which every start paid for each.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import psutil

from fl_server.kinds.sync import SyncKind
from fl_server.operations.arguments import LatestRuns
from fl_server.persistence.journal import Journal
from fl_server.rounds.facts import (
    RoundClosed,
    RoundCommitted,
    RoundStarted,
    RunCompleted,
    UpdateAccepted,
)
from fl_server.rounds.model import Model, Update
from fl_server.runs.definition import parse_definition
from storage.registry.registry import ModelRegistry
from storage.store.memory import MemoryStore
from storage.store.objects import ObjectInfo
from storage.versions.keys import RunKeys
from tests.operations import Disk, Life
from tests.versions import KEY, PROJECT, manifest_of

_LISTED = 100
_USAGE = {"train_s": 1.5, "bytes_up": 10_076.0, "bytes_down": 9_968.0, "steps": 400.0}
_TIMES = 5
_VERSIONS = (1, 2, 3)


@dataclass(frozen=True)
class Cost:
    """What one number of runs costs. ``file_bytes`` is the journal's.

    ``versions_bytes`` is what the server's memory grew by when their versions were read.
    """

    runs: int
    start_s: float
    list_s: float
    rss_bytes: int
    versions_bytes: int
    file_bytes: int


def write_run(folder: Path, devices: int, rounds: int) -> None:
    """Write one run whole, and let it become history."""
    life = Life(Disk(folder))
    names = tuple(f"device-{number:03}" for number in range(devices))
    keys = {"task": "digits", "rounds": rounds, "cohort": {"size": devices}}
    definition = parse_definition(keys, "benchmark")
    record = life.runner.new_record("digits-0", definition, Model(0, "k/0", "0" * 64, 9_968))
    life.journal.add_run(record)
    for number in range(1, rounds + 1):
        facts = [RoundStarted(number, 1, names, devices)]
        for name in names:
            update = Update(f"u/{number}/{name}", 10_076, "a" * 64, 75, {"loss": 0.5}, _USAGE)
            facts.append(UpdateAccepted(number, 1, name, update))
        facts.append(RoundClosed(number, 1, names))
        facts.append(RoundCommitted(number, 1, Model(number, f"k/{number}", "b" * 64, 9_968)))
        life.journal.append(record.run_id, facts)
    life.journal.append(record.run_id, [RunCompleted()])
    life.end()
    life = Life(Disk(folder))
    life.runner.timers.drop(record.run_id)
    life.runner.handle(record.run_id)
    life.plane.run()
    assert not life.runner.flows
    life.end()


def copy_run(folder: Path, runs: int) -> None:
    """Copy the run's rows, so that there are as many; facts stay as long as the retention says."""
    columns = {
        "rengo_runs": "definition, plan, initial, at, digest, filed_at",
        "rengo_reports": "task, at, listed, 0, summary, document, speeds, report",
    }
    with closing(sqlite3.connect(folder / "journal.sqlite")) as db, db:
        for table, names in columns.items():
            into = names.replace(" 0,", " has_facts,")
            db.executemany(
                f"INSERT INTO {table} (run_id, number, {into}) SELECT ?, ?, {names} FROM {table}"
                " WHERE run_id = 'digits-0'",
                [(f"digits-{number}", number + 1) for number in range(1, runs)],
            )


class MadeUpStore(MemoryStore):
    """A store that holds the versions of many runs, and makes each document when it is read."""

    def __init__(self, runs: int, devices: int) -> None:
        super().__init__()
        self._runs = runs
        self._cohort = [f"device-{number:03}" for number in range(devices)]

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        for run in range(self._runs):
            keys = RunKeys(PROJECT, f"digits-{run:08}")
            for key_of, size in ((keys.version, 9_968), (keys.manifest, 1_000)):
                for number in _VERSIONS:
                    yield ObjectInfo(key_of(number), size, "e")

    @contextmanager
    def open(self, key: str, start: int = 0) -> Iterator[BinaryIO]:
        keys = RunKeys.of(key)
        number = None if keys is None else keys.version_of(key)
        assert keys is not None
        assert number is not None
        changes = {"cohort": self._cohort, "cohort_size": len(self._cohort), "size_bytes": 9_968}
        yield BytesIO(manifest_of(keys.run_id, number, **changes).encode(KEY)[start:])


def measure_versions(runs: int, devices: int) -> int:
    """Return how much memory a registry takes that has read three versions of each run."""
    before = psutil.Process().memory_info().rss
    registry = ModelRegistry(MadeUpStore(runs, devices), PROJECT, KEY)
    problems = registry.rebuild()
    assert not problems, problems[:3]
    assert registry.find(f"digits-{runs - 1:08}").name == f"digits-{runs - 1:08}:{_VERSIONS[-1]}"
    return psutil.Process().memory_info().rss - before


def measure(folder: Path, runs: int, devices: int) -> dict[str, float]:
    """Open the journal as a server does; return what that and a list take."""
    start_s = _shortest(lambda: Life(Disk(folder)).end())
    life = Life(Disk(folder))
    handler = life.operations._table["runs_ls"].handler
    list_s = _shortest(lambda: handler(LatestRuns(last=_LISTED), None))
    life.end()
    rss_bytes = psutil.Process().memory_info().rss
    versions_bytes = measure_versions(runs, devices)
    costs = {"start_s": start_s, "list_s": list_s}
    return {**costs, "rss_bytes": rss_bytes, "versions_bytes": versions_bytes}


def _shortest(act: Callable[[], object]) -> float:
    times_s = []
    for _ in range(_TIMES):
        began_s = time.perf_counter()
        act()
        times_s.append(time.perf_counter() - began_s)
    return min(times_s)


def open_one(folder: Path) -> float:
    """Return what the flow of one such run costs to open, as every start once did for each."""
    journal = Journal(folder / "journal.sqlite", {"sync": SyncKind.vocabulary})
    life = Life(Disk(folder))

    def fold() -> None:
        record = journal.record("digits-0")
        SyncKind().open(record, journal.facts("digits-0"), life.runner.services)

    fold_s = _shortest(fold)
    life.end()
    journal.close()
    return fold_s


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, nargs="+", default=[10, 100, 1000, 10_000])
    parser.add_argument("--devices", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.runs[0], options.devices)))
        return 0
    with tempfile.TemporaryDirectory(prefix="rengo-history-") as folder:
        costs, fold_s = _costs(Path(folder), options)
    print(
        f"{'runs':>7} {'start':>10} {'list of 100':>12} {'memory':>10} "
        f"{'versions':>10} {'journal':>10}"
    )
    for each in costs:
        print(
            f"{each.runs:>7} {each.start_s * 1e3:>7.1f} ms {each.list_s * 1e3:>9.1f} ms "
            f"{each.rss_bytes / 2**20:>6.1f} MiB {each.versions_bytes / 2**20:>6.1f} MiB "
            f"{each.file_bytes / 2**20:>6.1f} MiB"
        )
    first, last = costs[0], costs[-1]
    every_s = last.runs * fold_s
    print(
        f"{last.runs} runs beside {first.runs}: start {last.start_s / first.start_s:.2f}, list "
        f"{_per_row(last) / _per_row(first):.2f} a row, memory "
        f"{last.rss_bytes / first.rss_bytes:.2f}; a start that opened every run would "
        f"take {every_s:.0f} s more"
    )
    if options.json:
        document = {"costs": [asdict(each) for each in costs], "open_one_s": fold_s}
        Path(options.json).write_text(json.dumps(document, indent=2) + "\n")
    return 0


def _per_row(cost: Cost) -> float:
    return cost.list_s / min(cost.runs, _LISTED)


def _costs(folder: Path, options: argparse.Namespace) -> tuple[list[Cost], float]:
    write_run(folder / "one", options.devices, options.rounds)
    costs = []
    for runs in options.runs:
        place = folder / str(runs)
        shutil.copytree(folder / "one", place)
        copy_run(place, runs)
        argv = [sys.executable, "-m", "benchmarks.history", "--measure", str(place)]
        argv += ["--runs", str(runs), "--devices", str(options.devices)]
        told = json.loads(subprocess.run(argv, check=True, stdout=subprocess.PIPE).stdout)
        size = (place / "journal.sqlite").stat().st_size
        costs.append(Cost(runs, file_bytes=size, **told))
        shutil.rmtree(place)
    return costs, open_one(folder / "one")


if __name__ == "__main__":
    sys.exit(main())
