"""A model of 1 GiB through everything: memory, bytes, and rates beside bare urllib3's.

    python -m benchmarks.size [--mib 1024] [--devices 4] [--repetitions 2] [--json FILE]

Four ways are measured in turn on one site: bare urllib3 that also computes sha256, the product's
transfers at the same concurrency, a transfer that is cut, and a run of the product: version 0 by
the submitter, download, update, upload, aggregation. Rates count a process for each device.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import psutil
import urllib3

from benchmarks import large
from benchmarks.processes import cost, peak_rss_bytes
from rengo.operator.runs import follow, submit, wait_for_devices
from rengo.site.device_process import DeviceSpec
from rengo.site.site import Site
from runtime.files import file_sha256
from storage.store.multipart_writer import PartWriter
from storage.store.s3 import S3Store
from storage.transfer.files import Transfers
from storage.transfer.multipart import MultipartTarget
from tests.proxy import Fault, Proxy

_TASK = f"{Path(large.__file__)}:Large"
_BLOCK = 1 << 20
_URL_S = 3600
_START_S = 60.0
_MIB = 2**20
_REST_S, _REST_TRIES, _REST_BYTES = 1.0, 30, 16 * _MIB
_KEY = "benchmark/size"


# --- a client process -------------------------------------------------------------------------


def client() -> None:
    """Do what each line of standard input says, and answer ``done``."""
    pool, transfers, block = urllib3.PoolManager(maxsize=2), Transfers(), random.randbytes(_BLOCK)
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        match order["do"]:
            case "floor-get":
                _floor_get(pool, order["url"], order["path"])
            case "floor-put":
                _floor_put(pool, order["url"], order["size"], block)
            case "get":
                Path(order["path"]).unlink(missing_ok=True)
                transfers.download(
                    order["url"], Path(order["path"]), sha256=order["sha256"], size=order["size"]
                )
            case "put":
                transfers.upload_in_parts(MultipartTarget(**order["place"]), Path(order["path"]))
        print("done", flush=True)


def _floor_get(pool: urllib3.PoolManager, url: str, path: str) -> None:
    """Hash what comes, and write it where ``path`` is not the null device."""
    digest = hashlib.sha256()
    response = pool.request("GET", url, preload_content=False)
    assert response.status == 200, response.status
    with Path(path).open("wb") as file:
        while block := response.read(_BLOCK):
            digest.update(block)
            file.write(block)
    response.release_conn()


def _floor_put(
    pool: urllib3.PoolManager, url: str, size: int, block: bytes, kept: BinaryIO | None = None
) -> None:
    """Hash what goes, and write it to ``kept`` where there is one."""
    digest = hashlib.sha256()

    def blocks() -> Iterator[bytes]:
        for start in range(0, size, _BLOCK):
            part = block[: size - start]
            digest.update(part)
            if kept is not None:
                kept.write(part)
            yield part

    headers = {"Content-Length": str(size)}
    response = pool.request("PUT", url, body=blocks(), headers=headers)
    assert response.status == 200, response.status


@contextmanager
def clients(count: int) -> Iterator[list[subprocess.Popen[str]]]:
    argv = [sys.executable, "-m", "benchmarks.size", "--client"]
    found = [
        subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    try:
        for each in found:
            assert each.stdout is not None
            assert each.stdout.readline() == "ready\n"
        yield found
    finally:
        for each in found:
            assert each.stdin is not None
            each.stdin.close()
            each.wait()


def _all(processes: list[subprocess.Popen[str]], order: Callable[[int], dict[str, Any]]) -> None:
    """Give every client its order at once and return when all have done it."""
    orders = [json.dumps(order(index)) + "\n" for index in range(len(processes))]

    def one(index: int) -> None:
        process = processes[index]
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(orders[index])
        process.stdin.flush()
        assert process.stdout.readline() == "done\n"

    with ThreadPoolExecutor(len(processes)) as threads:
        list(threads.map(one, range(len(processes))))


# --- transfers --------------------------------------------------------------------------------


def place_for(store: S3Store, key: str, size: int) -> MultipartTarget:
    upload_id, part_bytes = store.begin_upload(key), store.sizes.part_for(size)
    return MultipartTarget(
        upload_id,
        part_bytes,
        [
            store.presign_part(key, upload_id, number, _URL_S)
            for number in range(1, -(-size // part_bytes) + 1)
        ],
        store.presign_complete(key, upload_id, _URL_S),
    )


def _let_disk_rest(folder: Path) -> None:
    """Return when what was written before lies on the disk, and what was deleted has left it.

    Otherwise each measurement pays for the one before it.
    """
    pause, used = threading.Event(), 0
    for _ in range(_REST_TRIES):
        os.sync()
        before, used = used, shutil.disk_usage(folder).used
        if abs(used - before) < _REST_BYTES:
            return
        pause.wait(_REST_S)


class Rates:
    """Seconds of the floor and of the product for the same bytes, in turn."""

    def __init__(self, store: S3Store, folder: Path, size: int, devices: int) -> None:
        self.store, self.folder, self.size, self.devices = store, folder, size, devices
        self.seconds: dict[str, list[float]] = {}
        block = random.randbytes(_BLOCK)
        self.source = folder / "source"
        digest = hashlib.sha256()
        with self.source.open("wb") as file:
            for start in range(0, size, _BLOCK):
                file.write(block[: size - start])
                digest.update(block[: size - start])
        self.sha256 = digest.hexdigest()
        self.block = block

    def measure(self, repetitions: int) -> None:
        with clients(self.devices) as processes:
            for _ in range(repetitions):
                self._one_turn(processes)
        self.source.unlink()

    def _one_turn(self, processes: list[subprocess.Popen[str]]) -> None:
        key, pool = f"{_KEY}/model", urllib3.PoolManager()
        url = self.store.presign_put(key, _URL_S)
        self._take("floor publish", lambda: _floor_put(pool, url, self.size, self.block))
        self.store.delete([key])
        self._take("floor publish, kept", lambda: self._floor_kept(pool, url))
        self.store.delete([key])
        self._take("publish", lambda: self._publish(key))
        self._take("write in parts", lambda: self._write(f"{_KEY}/next"))
        get = self.store.presign_get(key, _URL_S)
        for name, target in (("floor download", "get-"), ("floor download, kept nowhere", "")):
            self._take_all(
                name,
                processes,
                lambda index, target=target: {  # type: ignore[misc]
                    "do": "floor-get",
                    "url": get,
                    "path": str(self.folder / f"{target}{index}") if target else os.devnull,
                },
            )
        self._forget("get-*")
        self._take_all(
            "download",
            processes,
            lambda index: {
                "do": "get",
                "url": get,
                "path": str(self.folder / f"get-{index}"),
                "sha256": self.sha256,
                "size": self.size,
            },
        )
        self._forget("get-*")
        keys = [self._key(index) for index in range(self.devices)]
        puts = [self.store.presign_put(key, _URL_S) for key in keys]
        self._take_all(
            "floor upload",
            processes,
            lambda index: {"do": "floor-put", "url": puts[index], "size": self.size},
        )
        self.store.delete(keys)
        for index in range(self.devices):
            (self.folder / f"put-{index}").hardlink_to(self.source)
        places = [asdict(place_for(self.store, key, self.size)) for key in keys]
        self._take_all(
            "upload",
            processes,
            lambda index: {
                "do": "put",
                "place": places[index],
                "path": str(self.folder / f"put-{index}"),
            },
        )
        self._forget("put-*")
        self.store.delete([info.key for info in self.store.list(f"{_KEY}/")])

    def _forget(self, pattern: str) -> None:
        for left in self.folder.glob(pattern):
            left.unlink()

    def _key(self, index: int) -> str:
        return f"{_KEY}/{index}.upd"

    def _take_all(
        self,
        name: str,
        processes: list[subprocess.Popen[str]],
        order: Callable[[int], dict[str, Any]],
    ) -> None:
        self._take(name, lambda: _all(processes, order))

    def _take(self, name: str, work: Callable[[], None]) -> None:
        _let_disk_rest(self.folder)
        start = time.perf_counter()
        work()
        self.seconds.setdefault(name, []).append(time.perf_counter() - start)

    def _floor_kept(self, pool: urllib3.PoolManager, url: str) -> None:
        """Write a file and send its bytes, as whoever makes a version must."""
        path = self.folder / "kept"
        with path.open("wb") as file:
            _floor_put(pool, url, self.size, self.block, file)
        path.unlink()

    def _publish(self, key: str) -> None:
        """Send version 0 as the submitter does: in parts, and hash the file beside it."""
        with ThreadPoolExecutor(1) as beside:
            beside.submit(file_sha256, self.source)
            Transfers().upload_in_parts(place_for(self.store, key, self.size), self.source)
        self.source.with_name(f"{self.source.name}.parts").unlink()

    def _write(self, key: str) -> None:
        """Store a version as the aggregation does: hashed, written and sent, block by block."""
        digest, path = hashlib.sha256(), self.folder / "next"
        writer = PartWriter(self.store, key, self.store.sizes.written_for(self.size))
        with path.open("wb") as file, writer:
            for start in range(0, self.size, _BLOCK):
                part = self.block[: self.size - start]
                digest.update(part)
                file.write(part)
                writer.write(part)
        path.unlink()

    def ratios(self) -> dict[str, float]:
        """Return the product's rate over the floor's, of the medians.

        The floors of a download and of a version in parts write the file, as the product must:
        ``kept nowhere`` only hashes.
        """
        median = {name: statistics.median(seconds) for name, seconds in self.seconds.items()}
        pairs = {"publish": "publish", "write in parts": "publish, kept"}
        pairs |= {"download": "download", "upload": "upload"}
        found = {name: median[f"floor {floor}"] / median[name] for name, floor in pairs.items()}
        bare = {
            "write in parts, kept nowhere": median["floor publish"] / median["write in parts"],
            "download, kept nowhere": median["floor download, kept nowhere"] / median["download"],
        }
        return {**found, **bare}


def bytes_sent_again(store: S3Store, folder: Path, size: int, seed: int = 4) -> list[int]:
    """Return what a cut at a random byte of an upload costs, for a few of them."""
    source = folder / "cut"
    source.write_bytes(random.randbytes(_BLOCK) * (size // _BLOCK))
    found = []
    with Proxy(store.settings.endpoint) as proxy:
        through = S3Store(store.settings.model_copy(update={"endpoint": proxy.url}), store.sizes)
        for cut in random.Random(seed).sample(range(size), 3):
            place = place_for(through, f"{_KEY}/cut", size)
            proxy.faults = [Fault(cut_up=cut)]
            found.append(Transfers().upload_in_parts(place, source) - size)
            source.with_name("cut.parts").unlink()
    source.unlink()
    store.delete([f"{_KEY}/cut"])
    return found


# --- the run ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One round of the product. Growth is the peak over what the process held before the run."""

    publish_s: float
    round_s: float
    server_before_mib: float
    server_growth_mib: float
    agent_growth_mib: float
    training_peak_mib: float
    device_mib: float
    device_over_model_mib: float
    bytes_down: int
    bytes_up: int
    server_cpu_s: float
    device_cpu_s: float
    objects_left: int
    uploads_left: int


def run(site: Site, store: S3Store, mib: int, devices: int) -> Run:
    """Return what one round of the product takes."""
    fleet = [
        DeviceSpec(f"device-{number + 1}", engine="numpy", index=number, count=devices)
        for number in range(devices)
    ]
    site.start_devices(fleet, _TASK)
    with site.connect() as operator:
        wait_for_devices(operator, [spec.name for spec in fleet], _START_S)
        server, agents = site.children["server"].pid, [site.children[s.name].pid for s in fleet]
        server_before = psutil.Process(server).memory_info().rss
        agents_before = [psutil.Process(pid).memory_info().rss for pid in agents]
        cpu = [cost(pid).cpu_s for pid in (server, *agents)]
        start = time.perf_counter()
        run_id = submit(operator, _TASK, _definition(devices))
        publish_s = time.perf_counter() - start
        report = follow(operator, run_id).report.document()
        cpu = [cost(pid).cpu_s - before for pid, before in zip((server, *agents), cpu, strict=True)]
    _settle(store, run_id)
    server_growth = peak_rss_bytes(server) - server_before
    agent_growth = max(
        peak_rss_bytes(pid) - before for pid, before in zip(agents, agents_before, strict=True)
    )
    training = max(each["peak_rss_bytes"] for each in report["devices"])
    keys = [info.key for info in store.list("projects/")]
    return Run(
        publish_s=publish_s,
        round_s=report["round_s"][0],
        server_before_mib=server_before / _MIB,
        server_growth_mib=server_growth / _MIB,
        agent_growth_mib=agent_growth / _MIB,
        training_peak_mib=training / _MIB,
        device_mib=(agent_growth + training) / _MIB,
        device_over_model_mib=(agent_growth + training) / _MIB - mib,
        bytes_down=report["bytes_down"],
        bytes_up=report["bytes_up"],
        server_cpu_s=cpu[0],
        device_cpu_s=statistics.mean(cpu[1:]),
        objects_left=sum("/updates/" in key for key in keys),
        uploads_left=len(list(store.uploads(""))),
    )


def _definition(devices: int) -> dict[str, Any]:
    return {
        "rounds": 1,
        "cohort": {"size": devices, "quorum": devices, "deadline_s": 900.0},
        "evaluation": {"on": "none"},
        "models": {"keep": 2},
    }


def _settle(store: S3Store, run_id: str) -> None:
    """Return when the sweep at the run's end has done its work, or after a while."""
    pause = threading.Event()
    for _ in range(100):
        if not any("/updates/" in info.key for info in store.list("projects/")):
            return
        pause.wait(0.2)


# --- all of it --------------------------------------------------------------------------------


def print_table(mib: int, rates: Rates, again: list[int], found: Run) -> None:
    """Print what was measured, with the bars."""
    model_mb = mib * _MIB / 1e6
    for name, ratio in rates.ratios().items():
        kind = name.partition(",")[0]
        seconds = statistics.median(rates.seconds[kind])
        many = rates.devices if kind in {"download", "upload"} else 1
        rate = many * model_mb / seconds
        print(
            f"{name:28} {many} x {mib} MiB {seconds:7.2f} s {rate:7.0f} MB/s  {ratio:5.2f} of bare"
        )
    print(f"sent again after a cut: {', '.join(f'{each / 1e6:.2f} MB' for each in again)} (<= 16)")
    print(f"server grows by          {found.server_growth_mib:7.0f} MiB (<= 250 MB)")
    print(f"an agent grows by        {found.agent_growth_mib:7.0f} MiB")
    print(f"its training child holds {found.training_peak_mib:7.0f} MiB")
    print(f"both beyond the model    {found.device_over_model_mib:7.0f} MiB (<= 150 MB)")
    for name, value in asdict(found).items():
        print(f"  {name:22} {value:.2f}" if isinstance(value, float) else f"  {name:22} {value}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--devices", type=int, default=4)
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures as JSON")
    parser.add_argument("--client", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        client()
        return
    os.environ[large.VARIABLE] = str(options.mib)
    size = options.mib << 20
    with Site() as site, tempfile.TemporaryDirectory(prefix="rengo-size-") as name:
        store, folder = S3Store(site.store.settings), Path(name)
        found = run(site, store, options.mib, options.devices)
        print(json.dumps(asdict(found)), flush=True)
        rates = Rates(store, folder, size, options.devices)
        rates.measure(options.repetitions)
        again = bytes_sent_again(store, folder, size)
    print_table(options.mib, rates, again, found)
    if options.json:
        figures = {
            "mib": options.mib,
            "devices": options.devices,
            "seconds": rates.seconds,
            "ratios": rates.ratios(),
            "bytes_sent_again": again,
            "run": asdict(found),
        }
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
