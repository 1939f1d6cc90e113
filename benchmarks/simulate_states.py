"""Where clients' states may be kept beyond memory: SQLite, a mapped file, or a file that is read.

    python -m benchmarks.simulate_states [--clients 100000] [--kib 10] [--rounds 300]

Each way keeps the states of random cohorts of 100, read and written whole, in a process of its own.
Prints microseconds for a client and round, and what the process's memory grew by.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import sqlite3
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from runtime.processes.rss import rss_bytes

COHORT = 100


def sqlite(folder: Path, count: int, size: int) -> tuple[Callable, Callable]:  # type: ignore[type-arg]
    del count, size
    db = sqlite3.connect(folder / "states.sqlite", isolation_level=None)
    for pragma in ("journal_mode=off", "synchronous=off", "page_size=16384"):
        db.execute(f"pragma {pragma}")
    db.execute("create table states (client integer primary key, state blob)")

    def get(client: int) -> bytes | None:
        row = db.execute("select state from states where client = ?", (client,)).fetchone()
        return None if row is None else row[0]

    def put(client: int, state: bytes) -> None:
        db.execute("insert or replace into states values (?, ?)", (client, state))

    return get, put


def mapped(folder: Path, count: int, size: int) -> tuple[Callable, Callable]:  # type: ignore[type-arg]
    whole = np.memmap(folder / "states", np.uint8, "w+", shape=(count, size))
    there = np.zeros(count, bool)

    def get(client: int) -> bytes | None:
        return whole[client].tobytes() if there[client] else None

    def put(client: int, state: bytes) -> None:
        whole[client] = np.frombuffer(state, np.uint8)
        there[client] = True

    return get, put


def read(folder: Path, count: int, size: int) -> tuple[Callable, Callable]:  # type: ignore[type-arg]
    del count
    file = os.open(folder / "states", os.O_RDWR | os.O_CREAT)
    places: dict[int, int] = {}

    def get(client: int) -> bytes | None:
        return os.pread(file, size, places[client]) if client in places else None

    def put(client: int, state: bytes) -> None:
        os.pwrite(file, state, places.setdefault(client, len(places) * size))

    return get, put


WAYS = {"sqlite": sqlite, "mapped": mapped, "read": read}


def measure(name: str, clients: int, size: int, rounds: int, told: object) -> None:
    drawn, state = random.Random(1), os.urandom(size)
    with tempfile.TemporaryDirectory() as text:
        get, put = WAYS[name](Path(text), clients, size)
        before, begun_s = rss_bytes(os.getpid()), time.perf_counter()
        for _ in range(rounds):
            cohort = drawn.sample(range(clients), COHORT)
            for client in cohort:
                get(client)
            for client in cohort:
                put(client, state)
        took_s = time.perf_counter() - begun_s
        grown = (rss_bytes(os.getpid()) or 0) - (before or 0)
        told.put((took_s / rounds / COHORT, grown))  # type: ignore[attr-defined]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=int, default=100_000)
    parser.add_argument("--kib", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=300)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    for name in WAYS:
        told = context.Queue()
        given = (name, options.clients, options.kib << 10, options.rounds, told)
        process = context.Process(target=measure, args=given)
        process.start()
        seconds, grown = told.get()
        process.join()
        print(f"{name:7} {seconds * 1e6:8.1f} us a client and round, {grown / 2**20:8.1f} MiB more")


if __name__ == "__main__":
    main()
