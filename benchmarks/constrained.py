"""A Raspberry Pi's agent in a cage: what it needs to take part in a whole run (root, Linux).

    python -m benchmarks.constrained [--only NAME ...] [--smallest] [--rounds 5] [--json FILE]

Broker, store, server and two devices are unconstrained; the third device, its training process
included, has a bound on its memory, a quarter of a core and a link of 1 Mbit/s that loses a tenth
of the packets each way. It runs from a virtual environment of its own, with the iot extra alone,
so that the pages of its libraries count as its own. Every round waits for it: it is in the quorum.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from benchmarks.cage import Cage, Limits, missing
from benchmarks.processes import peak_rss_bytes
from fl_client.datasets.public.watch import DATASET, published, write
from rengo.operator.progress import DeviceTable
from rengo.operator.runs import follow, submit, wait_for_devices
from rengo.site.device_process import DeviceSpec
from rengo.site.preparation import SiteOptions
from rengo.site.site import Site
from runtime.errors import RengoError
from runtime.processes.child import Child
from tests.wheels import REPOSITORY, build_wheel

_MIB = 2**20
_NAME = "pi"
_NATIVE = 2
_START_S = 120.0
_RUN_S = 600.0
_SHORT_S = 60.0
_SAMPLE_S = 0.1
_FLOOR = "import numpy; print(open('/proc/self/status').read())"


@dataclass(frozen=True)
class Case:
    """One device to be shown."""

    name: str
    task: str
    engine: str
    memory_mib: int


CASES = (
    Case("numpy, MLP", "watch_mlp", "numpy", 96),
    Case("numpy, CNN", "watch", "numpy", 96),
    Case("torch, CNN", "watch", "torch", 384),
)


@dataclass(frozen=True)
class Row:
    """What a device in a cage did; memory in MiB, traffic and writes in KiB."""

    case: str
    task: str
    limit_mib: int
    finished: bool
    rounds: str
    agent_peak_mib: float
    training_peak_mib: float
    together_peak_mib: float
    anonymous_peak_mib: float
    group_peak_mib: float
    oom_kills: int
    cpu_s: float
    down_kib: int
    up_kib: int
    written_kib: int
    round_s: str
    accuracy: float | None
    why: str


class Watch:
    """Looks at the processes in a cage until it is closed: their peaks and what they wrote."""

    def __init__(self, cage: Cage) -> None:
        self.agent_peak = self.training_peak = self.together_peak = self.anonymous_peak = 0
        self.written = self.oom_kills = 0
        self._cage = cage
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch")

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed.wait(_SAMPLE_S):
            together = written = 0
            for pid in self._cage.pids():
                try:
                    process = psutil.Process(pid)
                    training = "fl_client.training" in process.cmdline()
                    peak = peak_rss_bytes(pid)
                    together += process.memory_info().rss
                    written += process.io_counters().write_bytes
                except psutil.NoSuchProcess:
                    continue  # it has ended meanwhile
                if training:
                    self.training_peak = max(self.training_peak, peak)
                else:
                    self.agent_peak = max(self.agent_peak, peak)
            self.together_peak = max(self.together_peak, together)
            self.anonymous_peak = max(self.anonymous_peak, self._cage.stat("total_rss"))
            self.oom_kills = max(self.oom_kills, self._cage.oom_kills())
            # an ended child's count is added to its parent's
            self.written = max(self.written, written)


@contextmanager
def device_python() -> Iterator[Path]:
    """Give a Python with Rengo's iot extra alone, from wheels, in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="rengo-device-", dir="/var/tmp") as folder:
        home = Path(folder)
        subprocess.run([sys.executable, "-m", "venv", "--copies", home], check=True)
        python = home / "bin/python"
        pip = (python, "-m", "pip", "install", "--quiet", "--only-binary=:all:")
        pinned = ("--constraint", REPOSITORY / "constraints.txt")
        print("installing rengo[iot] for the device …", flush=True)
        installed = subprocess.run(
            [*pip, *pinned, f"{build_wheel(home)}[iot]"],
            check=False,
            capture_output=True,
            text=True,
        )
        if installed.returncode:
            raise RengoError(f"pip could not install rengo[iot]: {installed.stderr[-2000:]}")
        yield python


@contextmanager
def recordings() -> Iterator[None]:
    """Within the block, this process and its children find the recordings of the task watch."""
    if DATASET.variable in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="rengo-watch-") as folder:
        pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps")
        print("fetching the recordings of the task watch …", flush=True)
        subprocess.run([*pip, "--dest", folder, "seglearn==1.2.5"], check=True, capture_output=True)
        (wheel,) = Path(folder).glob("seglearn-*.whl")
        write(published(wheel), Path(folder))
        os.environ[DATASET.variable] = folder
        try:
            yield
        finally:
            del os.environ[DATASET.variable]


def show(case: Case, python: Path, rounds: int, patience_s: float = _RUN_S) -> Row:
    """Let a device in a cage take part in a run, and return what that took.

    Args:
        patience_s: after which the run is given up; a device that lacks memory for the pages of
            its programs reads them again and again, and does hardly anything else.
    """
    limits = Limits(case.memory_mib * _MIB)
    with (
        tempfile.TemporaryDirectory(prefix="rengo-constrained-", dir="/var/tmp") as folder,
        Cage(limits) as cage,
        Site(Path(folder), options=SiteOptions(host="0.0.0.0", advertise=cage.address)) as site,
    ):
        natives = [
            DeviceSpec(f"edge-{index}", engine="numpy", index=index, count=_NATIVE + 1)
            for index in range(1, _NATIVE + 1)
        ]
        site.start_devices(natives, case.task)
        agent = _agent(case, python, cage, site)
        forget_pages(python.parents[1])
        with Watch(cage) as watch:
            agent.start()
            try:
                report, accuracy, why = _run(
                    site, agent, case.task, _definition(rounds), patience_s
                )
            finally:
                agent.stop()
        return _row(case, watch, cage, rounds, report | {"accuracy": accuracy, "why": why})


def floor_mib(python: Path) -> float:
    """Return the peak of a process that does nothing but load numpy: no training takes less."""
    one = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [python, "-P", "-c", _FLOOR],
        env=os.environ | one,
        check=True,
        capture_output=True,
        text=True,
    )
    (peak,) = (line.split()[1] for line in done.stdout.splitlines() if line.startswith("VmHWM:"))
    return round(int(peak) / 1024, 1)


def forget_pages(folder: Path) -> None:
    """Drop a folder's pages from memory, so that who reads them next is charged for them."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def _agent(case: Case, python: Path, cage: Cage, site: Site) -> Child:
    """Return the process of the device in the cage, admitted, not yet started."""
    identity = site.folder.ensure_identity("device", _NAME, site.at, index=0, count=_NATIVE + 1)
    site.admit([identity])
    kind = ["iot"] if case.engine == "numpy" else ["client", "--engine", case.engine]
    argv = [
        *(str(python), "-P", "-m", "rengo", *kind),
        *("--identity", str(site.folder.identity_path(_NAME))),
        *("--server", site.public_url),
        *("--data-dir", str(site.folder.root / "devices" / _NAME)),
        *("--task", case.task, "--index", "0", "--count", str(_NATIVE + 1)),
    ]
    log = site.folder.root / "logs" / f"{_NAME}.log"
    return Child("the device in the cage", cage.argv(*argv), log)


def _definition(rounds: int) -> dict[str, Any]:
    everybody = _NATIVE + 1
    return {
        "rounds": rounds,
        "seed": 0,
        "cohort": {
            "size": everybody,
            "quorum": everybody,
            "deadline_s": 300.0,
            "gather_s": 30.0,
            "max_attempts": 2,
        },
        "evaluation": {"on": "devices"},
    }


def _run(
    site: Site, agent: Child, task: str, definition: dict[str, Any], patience_s: float
) -> tuple[dict[str, Any], float | None, str]:
    """Return the run's report, its accuracy and why it did not end well ("" when it did)."""
    deadline = time.monotonic() + _START_S

    def look(_: object) -> None:
        site.check_processes()
        if not agent.running:
            raise RengoError(f"the agent ended with {agent.returncode}: {agent.explanation()}")
        if time.monotonic() > deadline:
            raise RengoError(f"not within {patience_s:.0f} s")

    report: dict[str, Any] = {"rounds_completed": 0, "round_s": [], "devices": []}
    try:
        with site.connect() as client:
            names = [_NAME, *(f"edge-{index}" for index in range(1, _NATIVE + 1))]
            wait_for_devices(client, names, _START_S, look, DeviceTable())
            deadline = time.monotonic() + patience_s
            result = follow(client, submit(client, task, definition), look)
            report, accuracy = result.report.document(), result.accuracy
    except RengoError as error:
        tail = agent.log.read_text("utf-8", "replace").splitlines()[-12:]
        print(*tail, sep="\n", file=sys.stderr)
        return report, None, str(error)
    return report, accuracy, ""


def _row(case: Case, watch: Watch, cage: Cage, rounds: int, report: dict[str, Any]) -> Row:
    used = cage.used()
    taken = {row["id"]: row["rounds"] for row in report["devices"]}.get(_NAME, 0)
    return Row(
        case=case.name,
        task=case.task,
        limit_mib=case.memory_mib,
        finished=taken == rounds,
        rounds=f"{taken}/{rounds}",
        agent_peak_mib=_mib(watch.agent_peak),
        training_peak_mib=_mib(watch.training_peak),
        together_peak_mib=_mib(watch.together_peak),
        anonymous_peak_mib=_mib(watch.anonymous_peak),
        group_peak_mib=_mib(used.max_usage_bytes),
        oom_kills=max(used.oom_kills, watch.oom_kills),
        cpu_s=round(used.cpu_s, 1),
        down_kib=round(used.bytes_down / 1024),
        up_kib=round(used.bytes_up / 1024),
        written_kib=round(watch.written / 1024),
        round_s=" ".join(f"{each:.1f}" for each in report["round_s"]),
        accuracy=report["accuracy"],
        why=report["why"],
    )


def _mib(size_bytes: int) -> float:
    return round(size_bytes / _MIB, 1)


def smallest(case: Case, python: Path) -> list[Row]:
    """Return rows of other bounds, from the least that works to within 2 MiB; two rounds each."""
    rows: list[Row] = []
    fails, works = case.memory_mib // 3, case.memory_mib
    while works - fails > 2:
        tried = (fails + works) // 2
        rows.append(show(replace(case, memory_mib=tried), python, 2, _SHORT_S))
        does = rows[-1].finished and not rows[-1].oom_kills
        print(f"{case.name} in {tried} MiB: {'works' if does else 'does not'}", flush=True)
        fails, works = (fails, tried) if does else (tried, works)
    return sorted(rows, key=lambda row: row.limit_mib)


def table(rows: Sequence[Row]) -> str:
    """Return rows as a table, a device a column: there are more figures than devices."""
    lines = []
    for key in Row.__dataclass_fields__:
        values = [str(getattr(row, key)) for row in rows]
        lines.append("| " + " | ".join([key, *values]) + " |")
    lines.insert(1, "|" + " --- |" * (len(rows) + 1))
    return "\n".join(lines)


def _cases(words: Sequence[str]) -> list[Case]:
    return [each for each in CASES if not words or any(word in each.name for word in words)]


def main() -> int:
    """Show every case and print a table; 1 when one did not finish, 2 when this cannot be run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="cases that hold it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--smallest", action="store_true", help="then find the least memory that works"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    lacks = missing(Path("/proc/self/cgroup").read_text(), root=os.geteuid() == 0)
    if lacks:
        print("This needs what is not here:", *lacks, sep="\n  ", file=sys.stderr)
        return 2
    # as Ctrl-C, so that everything is taken down
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    tried: list[Row] = []
    with recordings(), device_python() as python:
        # torch is too large to install each time: this device alone loads it here
        pythons = {"numpy": python, "torch": Path(sys.executable)}
        cases = _cases(options.only)
        rows = [show(case, pythons[case.engine], options.rounds) for case in cases]
        print(table(rows), flush=True)
        print(f"a process that only loads numpy: {floor_mib(python)} MiB", flush=True)
        if options.smallest:
            tried = [row for case in cases for row in smallest(case, pythons[case.engine])]
            print(table(tried))
    if options.json:
        document = [asdict(row) for row in (*rows, *tried)]
        options.json.write_text(json.dumps(document, indent=2) + "\n")
    return 0 if all(row.finished for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
