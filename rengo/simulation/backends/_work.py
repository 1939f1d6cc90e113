"""What a process of the backend ``processes`` does: an order at a time, as a device would."""

from __future__ import annotations

import os
import queue
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

import numpy as np

from algorithms.base import Algorithm
from algorithms.transforms.base import Transform
from fl_client.engines.base import Precision
from fl_client.tasks._shared_data import Pool
from rengo.simulation.backend import BackendSetup, GlobalModel, VirtualOrder
from rengo.simulation.backends.inline import InlineBackend
from rengo.simulation.clients import ClientsSpec, SharedData, VirtualClients
from storage.weights import Array, Layout, Weights

_CACHE_BYTES = 32 << 20
_POOL = ("inputs", "targets", "test_inputs", "test_targets", "labels", "owners")


@dataclass(frozen=True)
class WorkerStart:
    """What a worker is started with.

    Attributes:
        data: a folder with the divided data set, which all workers map; None where there is none.
        transforms: what is done to updates.
    """

    spec: ClientsSpec
    algorithm: Algorithm
    seed: int
    engine: str
    precision: Precision
    data: Path | None
    transforms: tuple[Transform, ...] = ()


@dataclass(frozen=True)
class ModelMap:
    """Where a version lies that a worker is to train from or to measure.

    Attributes:
        path: a file of float32: the weights' vector, then the server's vectors by name.
        others: the weights' tensors that are not floats.
    """

    version: int
    path: Path
    layout: Layout
    others: Mapping[str, Array]
    vectors: tuple[str, ...]
    scalars: Mapping[str, float]

    def model(self) -> GlobalModel:
        """Return the version; its arrays are read from the file when they are used."""
        size = self.layout.size
        shape = (1 + len(self.vectors), size)
        rows = np.memmap(self.path, np.float32, "r", shape=shape)
        vectors = {name: rows[1 + index] for index, name in enumerate(self.vectors)}
        weights = Weights(self.layout, np.asarray(rows[0]), self.others)
        return GlobalModel(self.version, weights, vectors, self.scalars)


@dataclass(frozen=True)
class WorkerOrder:
    """What a worker is to do; its number comes back with the result."""

    number: int
    action: Literal["train", "evaluate"]
    order: VirtualOrder


def main(descriptor: int) -> None:
    """Do orders until the connection ends."""
    # an interrupt at the terminal goes to the whole group: the parent ends us
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = Connection(descriptor)
    start: WorkerStart = connection.recv()
    shared = None if start.data is None else read_shared(start.data)
    # every worker sees every client sooner or later, and there may be many workers
    clients = VirtualClients(start.spec, shared=shared, cache_bytes=_CACHE_BYTES)
    setup = BackendSetup(
        clients,
        start.algorithm,
        start.seed,
        start.engine,
        transforms=start.transforms,
        precision=start.precision,
    )
    backend = InlineBackend(setup)
    messages: queue.SimpleQueue[ModelMap | WorkerOrder] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(connection, messages), daemon=True).start()
    connection.send("ready")
    got: GlobalModel | None = None
    while True:
        message = messages.get()
        match message:
            case ModelMap():
                got = message.model()
            case WorkerOrder():
                assert got is not None
                do = backend.train if message.action == "train" else backend.evaluate
                (result,) = do([message.order], got)
                connection.send((message.number, result))


def _read(connection: Connection, messages: queue.SimpleQueue[ModelMap | WorkerOrder]) -> None:
    """Read ahead, so that the parent never waits for a worker that waits for it.

    When the parent has closed the connection or has gone, so does this process, at once.
    """
    while True:
        try:
            messages.put(connection.recv())
        except (EOFError, OSError):
            os._exit(0)


def write_shared(data: SharedData, folder: Path) -> SharedData:
    """Write a divided data set into a folder; returns it mapped from there."""
    arrays: dict[str, Array | None] = {name: getattr(data.pool, name) for name in _POOL}
    arrays |= {"parts": data.parts, "starts": data.starts}
    for name, array in arrays.items():
        if array is not None:
            np.save(folder / f"{name}.npy", array, allow_pickle=False)
    return read_shared(folder)


def read_shared(folder: Path) -> SharedData:
    """Return the data set in a folder, mapped: processes share its pages."""
    found = {
        path.stem: np.load(path, mmap_mode="r", allow_pickle=False) for path in folder.glob("*.npy")
    }
    pool = Pool(**{name: found.get(name) for name in _POOL})  # type: ignore[arg-type]
    return SharedData(pool, found["parts"], found["starts"])
