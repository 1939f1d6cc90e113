"""Simulated rounds a second, side by side with other simulators: ``make bench-simulate``.

Every simulator gets the same model, first weights, data, cohorts, epochs, batch size and rate, and
its accuracy stands beside its time, so that none wins by doing less. Each peer runs in an
environment of its own, made with pip under the cache folder; one that does not install is left out,
and the table says why. A job's floor is the bare arithmetic: stacked products in numpy.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from fl_client.models import layers
from fl_server.selection.uniform import select
from rengo.simulation.clients import EVALUATOR
from rengo.simulation.definition import Simulation, prepare

DRIVERS = Path(__file__).parent / "simulate_peers"
TORCH = "torch==2.13.0"
SEED = 1
_SAMPLE_S = 0.05


@dataclass(frozen=True)
class Job:
    """What is trained; ``cohort`` of ``clients`` train in a round."""

    task: str
    clients: int
    cohort: int
    rounds: int
    training: Mapping[str, Any]
    about: str


def _training(batch: int, rate: float) -> dict[str, Any]:
    return {"batch_size": batch, "learning_rate": rate, "local_epochs": 1, "momentum": 0.0}


JOBS = {
    "J1": Job("digits", 100, 10, 100, _training(10, 0.1), "digits, MLP 64-32-10"),
    "J2": Job("mnist-logistic", 1000, 10, 50, _training(10, 0.03), "MNIST, logistic regression"),
    "J3": Job("mnist-2nn", 100, 10, 8, _training(10, 0.1), "MNIST, MLP 784-200-200-10"),
    "J4": Job("mnist-cnn", 100, 20, 3, _training(50, 0.1), "MNIST, CNN of the FedAvg paper"),
}


@dataclass(frozen=True)
class Peer:
    """A simulator, and what pip installs for it; of nothing, it runs in this environment."""

    driver: str
    packages: tuple[str, ...] = ()
    python: str = sys.executable
    environment: Mapping[str, str] = field(default_factory=dict)


_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
PEERS = {
    "floor": Peer("floor", environment=_ONE_THREAD),
    "rengo": Peer("ours", environment=_ONE_THREAD),
    "rengo-inline": Peer("ours", environment={**_ONE_THREAD, "BENCH_BACKEND": "inline"}),
    "rengo-bfloat16": Peer("ours", environment={**_ONE_THREAD, "BENCH_PRECISION": "bfloat16"}),
    "loop": Peer("loop", environment=_ONE_THREAD),
    "flower": Peer("peer_flower", ("flwr[simulation]", TORCH)),
    "blazefl": Peer("peer_blazefl", ("blazefl<3", "numpy", "tqdm", TORCH), python="python3.12"),
    "pfl": Peer("peer_pfl", ("pfl[pytorch]", TORCH), environment=_ONE_THREAD),
    "flgo": Peer("peer_flgo", ("flgo", TORCH), environment=_ONE_THREAD),
    "fedjax": Peer("peer_fedjax", ("fedjax",)),
    "fluke": Peer("peer_fluke", ("fluke-fl", TORCH), environment=_ONE_THREAD),
}


@dataclass
class Figures:
    """What a simulator took for a job.

    Attributes:
        rounds_per_s: of the median round after the first.
        first_s: from the start of the process to the end of round 1.
        cpu_s: of all its processes, from start to end.
        peak_mb: the most that its processes held at once.
        note: its version; or why there is nothing else.
    """

    peer: str
    note: str
    rounds_per_s: float | None = None
    first_s: float | None = None
    whole_s: float | None = None
    cpu_s: float | None = None
    peak_mb: float | None = None
    accuracy: float | None = None


# --- the job's files ------------------------------------------------------------------------------


def write_job(job: Job, folder: Path) -> None:
    """Write what every simulator reads."""
    settings = {
        "training": dict(job.training),
        "rounds": job.rounds,
        "seed": SEED,
        "cohort": {"size": job.cohort},
        "evaluation": {"every": job.rounds},
    }
    run = prepare(Simulation(job.task, settings, job.clients, "iid")).run
    clients = run.clients
    parts = [clients.splits(number)[0] for number in range(job.clients)]
    counts = [len(inputs) for inputs, _ in parts]
    test_x, test_y = clients.splits(EVALUATOR)[1]
    arrays = {
        "x": np.concatenate([inputs for inputs, _ in parts]),
        "y": np.concatenate([targets for _, targets in parts]).astype(np.int64),
        "starts": np.cumsum([0, *counts]),
        "test_x": test_x,
        "test_y": test_y,
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    np.savez(folder / "weights.npz", **run.initial.weights.arrays())
    numbers = {device_id: number for number, device_id in enumerate(clients.ids)}
    cohorts = [
        select(clients.ids, job.cohort, seed=SEED, round_number=number, attempt=1)
        for number in range(1, job.rounds + 1)
    ]
    content = {
        "task": job.task,
        "settings": settings,
        "clients_count": job.clients,
        "partition": "iid",
        "cohorts": [[numbers[each] for each in cohort] for cohort in cohorts],
        "names": list(run.initial.weights.arrays()),
        "layers": [_plain(layer) for layer in clients.task.model()],
        "batch": job.training["batch_size"],
        "rate": job.training["learning_rate"],
        "epochs": job.training["local_epochs"],
    }
    (folder / "job.json").write_text(json.dumps(content))


def _plain(layer: layers.Layer) -> list[Any]:
    match layer:
        case layers.Linear():
            return ["linear", layer.inputs, layer.outputs]
        case layers.Conv2d():
            return ["conv", layer.inputs, layer.outputs, layer.kernel, layer.padding]
        case layers.MaxPool2d():
            return ["pool", layer.size]
        case layers.ReLU():
            return ["relu"]
        case layers.Flatten():
            return ["flatten"]
        case layers.Reshape():
            return ["reshape", *layer.shape]
    raise SystemExit(f"no peer knows the layer {layer}")


# --- one simulator --------------------------------------------------------------------------------


def interpreter(name: str, peer: Peer) -> Path | str:
    """Return the Python of a peer's environment, or in a word why there is none."""
    if not peer.packages:
        return Path(sys.executable)
    place = _cache() / name
    python = place / "bin" / "python"
    if (place / "installed").exists():
        return python
    base = shutil.which(peer.python)
    if base is None:
        return f"needs {peer.python}, which is not here"
    shutil.rmtree(place, ignore_errors=True)
    print(f"installing {name} into {place}", flush=True)
    subprocess.run([base, "-m", "venv", str(place)], check=True)
    command = [str(python), "-m", "pip", "install", "--quiet", *peer.packages]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"does not install: {_last_line(done.stderr)}"
    (place / "installed").touch()
    return python


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "rengo" / "bench-simulate"


def measure(name: str, folder: Path, limit_s: float) -> Figures:
    """Return what a simulator took for the job in ``folder``."""
    peer = PEERS[name]
    python = interpreter(name, peer)
    if isinstance(python, str):
        return Figures(name, python)
    result = folder / f"{name}.json"
    command = [str(python), str(DRIVERS / f"{peer.driver}.py"), str(folder), str(result)]
    root = str(Path(__file__).parent.parent)
    begun_s = time.time()
    environment = {**os.environ, **peer.environment, "BENCH_BEGUN": str(begun_s)}
    if not peer.packages:
        environment["PYTHONPATH"] = root
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        usage = _Usage(process.pid)
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            usage.end_all()
            process.wait()
            return Figures(name, f"was not done after {limit_s:.0f} s")
        finally:
            usage.stop()
    whole_s = time.time() - begun_s
    if code or not result.exists():
        return Figures(name, f"failed: {_last_line((folder / f'{name}.log').read_text())}")
    found = json.loads(result.read_text())
    later = found["round_s"][1:] or found["round_s"]
    return Figures(
        name,
        found["version"],
        1 / statistics.median(later),
        found["first_s"],
        whole_s,
        usage.cpu_s,
        usage.peak_bytes / 1e6,
        found["accuracy"],
    )


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:160] if lines else "it said nothing"


class _Usage:
    """Watches a process and its descendants: what they held at once, and computed in all."""

    def __init__(self, pid: int) -> None:
        self.peak_bytes = 0
        self._pid, self._ended = pid, threading.Event()
        self._cpu: dict[tuple[int, float], float] = {}
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    @property
    def cpu_s(self) -> float:
        return sum(self._cpu.values())

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def end_all(self) -> None:
        for process in self._family():
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue

    def _family(self) -> list[psutil.Process]:
        try:
            parent = psutil.Process(self._pid)
            return [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _watch(self) -> None:
        while not self._ended.wait(_SAMPLE_S):
            held = 0
            for process in self._family():
                try:
                    with process.oneshot():
                        times = process.cpu_times()
                        key = (process.pid, process.create_time())
                        held += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
                self._cpu[key] = times.user + times.system
            self.peak_bytes = max(self.peak_bytes, held)


# --- the table ------------------------------------------------------------------------------------


def _row(row: Figures) -> str:
    if row.rounds_per_s is None:
        return f"{row.peer:14}{row.note}"
    return (
        f"{row.peer:14}{row.rounds_per_s:10.3g}{row.first_s:12.2f}{row.whole_s:10.2f}"
        f"{row.cpu_s:8.1f}{row.peak_mb:7.0f}{row.accuracy:10.4f}  {row.note}"
    )


def main() -> None:
    """Measure what the command line asks for, and print a table for each job."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", default=",".join(JOBS), help="which, of %(default)s")
    parser.add_argument("--peers", default=",".join(PEERS), help="which, of %(default)s")
    parser.add_argument("--rounds", type=int, help="in every job, instead of its own number")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for each simulator")
    parser.add_argument("--json", type=Path, help="write all figures into a file")
    asked = parser.parse_args()
    documents = {}
    for key in asked.jobs.split(","):
        job = JOBS[key]
        job = job if asked.rounds is None else Job(**{**asdict(job), "rounds": asked.rounds})
        cores, load = os.cpu_count(), os.getloadavg()[0]
        print(
            f"\n{key}: {job.about}, {job.cohort} of {job.clients} clients, batch "
            f"{job.training['batch_size']}, rate {job.training['learning_rate']}, {job.rounds} "
            f"rounds; {cores} cores, load {load:.1f}"
        )
        print(
            f"{'':14}{'rounds/s':>10}{'round 1, s':>12}{'whole, s':>10}{'CPU s':>8}{'MB':>7}"
            f"{'accuracy':>10}"
        )
        with tempfile.TemporaryDirectory(prefix="bench-simulate-") as place:
            folder = Path(place)
            write_job(job, folder)
            rows = []
            for name in asked.peers.split(","):
                rows.append(measure(name, folder, asked.limit))
                print(_row(rows[-1]), flush=True)
        documents[key] = [asdict(row) for row in rows]
    if asked.json:
        asked.json.write_text(json.dumps(documents, indent=1))


if __name__ == "__main__":
    main()
