"""processes: a process for each core, each with one client at a time; data and weights are shared.

A client is computed as inline, on one thread, so the result has the same bits whatever the number
of workers. The data set and each version lie in files that all of them map.
"""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from fl_client.own_packages import command
from rengo.simulation.backend import (
    BackendSetup,
    EvaluationResult,
    GlobalModel,
    TrainingResult,
    VirtualOrder,
)
from rengo.simulation.backends._work import ModelMap, WorkerOrder, WorkerStart, write_shared
from runtime.errors import RunNotCompleted

_START_S = 120.0
_STOP_S = 5.0
# the next order is there when one is done
_AHEAD = 2
_ONE_THREAD = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


def open_backend(setup: BackendSetup) -> ProcessesBackend:
    """Return the backend, its workers ready."""
    return ProcessesBackend(setup)


class ProcessesBackend:
    """Trains the clients of a cohort side by side.

    Raises:
        RunNotCompleted: a worker did not start, or ended; names it.
    """

    def __init__(self, setup: BackendSetup) -> None:
        self._setup = setup
        self._folder = tempfile.TemporaryDirectory(prefix="rengo-simulate-")
        self._models = 0
        self._model_path: Path | None = None
        self._workers: list[_Worker] = []
        try:
            self._start(setup.workers or os.cpu_count() or 1)
        except BaseException:
            self.close()
            raise

    def train(self, orders: Sequence[VirtualOrder], got: GlobalModel) -> Iterator[TrainingResult]:
        """See :class:`rengo.simulation.backend.Backend`."""
        shared = self._setup.clients.shared
        if shared is not None:
            # the largest first, so that no worker is left alone with one at the end
            sizes = {order.client: len(shared.part(order.client)) for order in orders}
            orders = sorted(orders, key=lambda order: -sizes[order.client])
        return cast("Iterator[TrainingResult]", self._do("train", orders, got))

    def evaluate(
        self, orders: Sequence[VirtualOrder], got: GlobalModel
    ) -> Iterator[EvaluationResult]:
        """See :class:`rengo.simulation.backend.Backend`."""
        return cast("Iterator[EvaluationResult]", self._do("evaluate", orders, got))

    def close(self) -> None:
        """See :class:`rengo.simulation.backend.Backend`."""
        for worker in self._workers:
            worker.connection.close()
        for worker in self._workers:
            worker.wait()
        self._workers = []
        self._folder.cleanup()

    # --- workers ------------------------------------------------------------------------------

    def _start(self, count: int) -> None:
        setup, folder = self._setup, Path(self._folder.name)
        clients, data = setup.clients, None
        if clients.shared is not None:
            data = folder / "data"
            data.mkdir()
            # this process gives its own copy up
            clients.share(write_shared(clients.shared, data))
        start = WorkerStart(
            clients.spec,
            setup.algorithm,
            setup.seed,
            setup.engine,
            setup.precision,
            data,
            setup.transforms,
        )
        environment = {**os.environ, **dict.fromkeys(_ONE_THREAD, "1")}
        for number in range(1, count + 1):
            ours, theirs = socket.socketpair()
            with theirs:
                # a program of its own, which runs nothing of the user's script again
                process = subprocess.Popen(
                    [*command("rengo.simulation.backends._worker"), str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    env=environment,
                )
            self._workers.append(_Worker(number, process, Connection(ours.detach())))
            self._workers[-1].send(start)
        for worker in self._workers:
            if not worker.connection.poll(_START_S):
                raise RunNotCompleted(f"{worker} did not start within {_START_S:.0f} s")
            worker.receive()

    def _do(
        self,
        action: Literal["train", "evaluate"],
        orders: Sequence[VirtualOrder],
        got: GlobalModel,
    ) -> Iterator[Any]:
        model, done = self._written(got), 0
        waiting = iter([WorkerOrder(n, action, order) for n, order in enumerate(orders)])
        for worker in self._workers:
            worker.send(model)
        for worker in [*self._workers] * _AHEAD:
            worker.send_next(waiting)
        while done < len(orders):
            for worker in self._ready():
                _, result = worker.receive()
                worker.orders.pop(0)
                worker.send_next(waiting)
                done += 1
                yield result

    def _ready(self) -> list[_Worker]:
        """Return the workers that have sent something, or have ended."""
        busy = {worker.connection: worker for worker in self._workers if worker.orders}
        return [busy[cast("Connection", each)] for each in wait(list(busy))]

    def _written(self, got: GlobalModel) -> ModelMap:
        """Return where a version lies for the workers, once it is there."""
        weights, names = got.weights, tuple(got.vectors)
        rows = [weights.vector, *got.vectors.values()]
        if self._model_path is None or self._models != len(rows):
            self._models = len(rows)
            self._model_path = Path(self._folder.name) / f"model-{len(rows)}"
            # written whole, so that a full disk is an error here and not in whoever maps it
            with self._model_path.open("wb") as file:
                for row in rows:
                    file.write(np.ascontiguousarray(row, np.float32).data)
        else:
            shared = np.memmap(
                self._model_path, np.float32, "r+", shape=(len(rows), weights.layout.size)
            )
            for place, row in enumerate(rows):
                shared[place] = row
        return ModelMap(
            got.version, self._model_path, weights.layout, weights.others, names, got.scalars
        )


class _Worker:
    """One worker, as this process sees it."""

    def __init__(
        self, number: int, process: subprocess.Popen[bytes], connection: Connection
    ) -> None:
        self.number, self.process, self.connection = number, process, connection
        self.orders: list[WorkerOrder] = []

    def __str__(self) -> str:
        return f"worker {self.number} of the simulation (process {self.process.pid})"

    def send(self, message: object) -> None:
        """Send something; RunNotCompleted where the worker has ended."""
        try:
            self.connection.send(message)
        except OSError as error:
            raise self._ended() from error

    def send_next(self, waiting: Iterator[WorkerOrder]) -> None:
        """Send the next order, if there is one."""
        order = next(waiting, None)
        if order is not None:
            self.send(order)
            self.orders.append(order)

    def receive(self) -> Any:
        """Return what the worker sent; RunNotCompleted where it has ended."""
        try:
            return self.connection.recv()
        except (EOFError, OSError) as error:
            raise self._ended() from error

    def wait(self) -> int:
        """Return how it ended; one that does not end is killed."""
        try:
            return self.process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def _ended(self) -> RunNotCompleted:
        code = self.wait()
        how = f"was ended by signal {-code}" if code < 0 else f"ended with status {code}"
        doing = f" with {self.orders[0].order.device_id}" if self.orders else ""
        hint = "; is memory short? --workers takes fewer" if code == -9 else ""
        return RunNotCompleted(f"{self} {how}{doing}{hint}")
