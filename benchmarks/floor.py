"""The floor of a round: the same bytes through the same store by bare urllib3, and no more.

Each client is a process: it fetches the model with sha256 and puts an update with sha256. The
server's side fetches each update with sha256 as soon as it is there and puts one model.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import urllib3

from storage.store.s3 import S3Store

_BLOCK = 1 << 20
_URL_S = 900


@dataclass(frozen=True)
class Floor:
    """Seconds of each repetition, without the MQTT round trip."""

    seconds: list[float]

    @property
    def median_s(self) -> float:
        return statistics.median(self.seconds)


def _get(pool: urllib3.PoolManager, url: str) -> int:
    digest, size = hashlib.sha256(), 0
    response = pool.request("GET", url, preload_content=False)
    assert response.status == 200, response.status
    while block := response.read(_BLOCK):
        digest.update(block)
        size += len(block)
    response.release_conn()
    return size


def _put(pool: urllib3.PoolManager, url: str, data: bytes) -> None:
    hashlib.sha256(data).hexdigest()
    response = pool.request("PUT", url, body=data)
    assert response.status == 200, response.status


def client() -> None:
    """One client: a line ``GET-URL PUT-URL`` on stdin is a round, ``done`` answers it."""
    options = argparse.ArgumentParser()
    options.add_argument("--bytes", type=int)
    data = bytes(options.parse_args().bytes)
    pool = urllib3.PoolManager(maxsize=2)
    print("ready", flush=True)
    for line in sys.stdin:
        get, put = line.split()
        _get(pool, get)
        _put(pool, put, data)
        print("done", flush=True)


def measure(store: S3Store, clients: int, size: int, repetitions: int) -> Floor:
    """Return the floor for ``clients`` updates and a model of ``size`` bytes."""
    pool = urllib3.PoolManager(maxsize=8)
    data = bytes(size)
    model = "benchmark/floor/model"
    store.put(model, data)
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.floor", "--bytes", str(size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(clients)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        with ThreadPoolExecutor(clients) as threads:
            seconds = [
                _round(store, pool, threads, processes, model, data) for _ in range(repetitions)
            ]
    finally:
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()
    keys = [model, "benchmark/floor/next", *(_key(index) for index in range(clients))]
    store.delete(keys)
    return Floor(seconds)


def _key(index: int) -> str:
    return f"benchmark/floor/{index}.upd"


def _round(
    store: S3Store,
    pool: urllib3.PoolManager,
    threads: ThreadPoolExecutor,
    processes: list[subprocess.Popen[str]],
    model: str,
    data: bytes,
) -> float:
    urls = [
        (
            store.presign_get(model, _URL_S),
            store.presign_put(_key(index), _URL_S),
            store.presign_get(_key(index), _URL_S),
        )
        for index in range(len(processes))
    ]
    after = store.presign_put("benchmark/floor/next", _URL_S)

    def one(index: int) -> None:
        process, (get, put, fetch) = processes[index], urls[index]
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{get} {put}\n")
        process.stdin.flush()
        assert process.stdout.readline() == "done\n"
        _get(pool, fetch)

    start = time.perf_counter()
    list(threads.map(one, range(len(processes))))
    _put(pool, after, data)
    return time.perf_counter() - start


if __name__ == "__main__":
    client()
