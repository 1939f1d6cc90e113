"""The embedded stores side by side: start, idle memory, PUT and GET by presigned urllib3.

    python -m benchmarks.stores [--mib 25] [--repetitions 5]

The two servers take turns, so that a machine that drifts drifts for both.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import urllib3

from storage.store.embedded import EmbeddedStore, Kind
from storage.store.s3 import S3Store

_KINDS: tuple[Kind, ...] = ("juicefs", "seaweedfs")
_CLIENTS = (1, 8)
_URL_S = 900
_BLOCK = 1 << 20


def _put(pool: urllib3.PoolManager, url: str, data: bytes) -> None:
    response = pool.request("PUT", url, body=data)
    assert response.status == 200, response.status


def _get(pool: urllib3.PoolManager, url: str, size: int) -> None:
    response = pool.request("GET", url, preload_content=False)
    assert response.status == 200, response.status
    seen = 0
    while block := response.read(_BLOCK):
        seen += len(block)
    response.release_conn()
    assert seen == size, (seen, size)


def _rate_mb_s(clients: int, size: int, work: Callable[[int], None]) -> float:
    with ThreadPoolExecutor(clients) as threads:
        start = time.perf_counter()
        list(threads.map(work, range(clients)))
        return clients * size / 1e6 / (time.perf_counter() - start)


def _one_pass(store: S3Store, size: int, figures: dict[str, list[float]]) -> None:
    pool = urllib3.PoolManager(maxsize=max(_CLIENTS))
    data = bytes(size)
    for clients in _CLIENTS:
        keys = [f"benchmark/stores/{index}" for index in range(clients)]
        puts = [store.presign_put(key, _URL_S) for key in keys]
        gets = [store.presign_get(key, _URL_S) for key in keys]
        figures[f"PUT x{clients} MB/s"].append(
            _rate_mb_s(clients, size, lambda index, urls=puts: _put(pool, urls[index], data))
        )
        figures[f"GET x{clients} MB/s"].append(
            _rate_mb_s(clients, size, lambda index, urls=gets: _get(pool, urls[index], size))
        )
        store.delete(keys)


def main() -> None:
    """Measure both and print one table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--mib", type=int, default=25)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    figures: dict[Kind, dict[str, list[float]]] = {kind: defaultdict(list) for kind in _KINDS}
    with tempfile.TemporaryDirectory(prefix="rengo-stores-") as folder:
        servers = {kind: EmbeddedStore(Path(folder) / kind, kind) for kind in _KINDS}
        try:
            for kind, server in servers.items():
                start = time.perf_counter()
                server.start()
                figures[kind]["start s"].append(time.perf_counter() - start)
                idle = psutil.Process(server.pid).memory_info().rss
                figures[kind]["idle RSS MB"].append(idle / 1e6)
                S3Store(server.settings).ensure_bucket()
            for _ in range(options.repetitions):
                for kind, server in servers.items():
                    _one_pass(S3Store(server.settings), options.mib << 20, figures[kind])
        finally:
            for server in servers.values():
                server.stop()
    print(f"{'median of ' + str(options.repetitions):18}", *(f"{kind:>12}" for kind in _KINDS))
    for name in figures[_KINDS[0]]:
        row = (statistics.median(figures[kind][name]) for kind in _KINDS)
        print(f"{name:18}", *(f"{value:12.2f}" for value in row))


if __name__ == "__main__":
    main()
