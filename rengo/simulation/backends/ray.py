"""ray: the clients of a cohort as tasks on a Ray cluster, or on a Ray that is started here.

A client is computed as inline, on one thread, so on machines of one kind the result has the same
bits whatever the number of workers. The data set goes into the object store once, each version once
for the orders that need it. With ``RAY_ADDRESS`` set, it is that cluster, whose machines must have
Rengo and the task; else Ray is started on this machine and ends with the simulation.
"""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from types import ModuleType
from typing import Any, Literal, TypeAlias, cast

from rengo.simulation.backend import (
    BackendSetup,
    EvaluationResult,
    GlobalModel,
    TrainingResult,
    VirtualOrder,
)
from rengo.simulation.backends.inline import InlineBackend
from rengo.simulation.clients import ClientsSpec, SharedData, VirtualClients
from runtime.errors import MissingExtra, RunNotCompleted

_Action: TypeAlias = Literal["train", "evaluate"]
_CHUNKS_A_WORKER = 4
_RETRIES = 2
# so long nothing may be done before it is asked whether anybody is there who could
_PATIENCE_S = 60.0
_ONE_THREAD = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
_opened: dict[str, InlineBackend] = {}
"""In a worker: what it computes the simulation that it works for with."""


@dataclass(frozen=True, eq=False)
class RayStart:
    """What a worker computes with.

    Attributes:
        token: names the simulation.
        setup: what the backend is opened with, by name, but for the clients: a worker makes them.
    """

    token: str
    spec: ClientsSpec
    shared: SharedData | None
    setup: Mapping[str, Any]

    def backend(self) -> InlineBackend:
        """Return what computes an order in this process, made once."""
        if self.token not in _opened:
            _opened.clear()
            clients = VirtualClients(self.spec, shared=self.shared)
            _opened[self.token] = InlineBackend(BackendSetup(clients, **self.setup))
        return _opened[self.token]


def open_backend(setup: BackendSetup) -> RayBackend:
    """Return the backend, connected to Ray.

    Raises:
        MissingExtra: Ray is not installed.
    """
    return RayBackend(setup, _ray())


class RayBackend:
    """Trains the clients of a cohort on Ray's workers.

    Raises:
        RunNotCompleted: Ray cannot be reached, or lost its workers again and again.
    """

    def __init__(self, setup: BackendSetup, ray: ModuleType) -> None:
        self._ray, self._ours = ray, not ray.is_initialized()
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        if self._ours:
            self._connect(setup.workers)
        clients = setup.clients
        rest = {each.name: getattr(setup, each.name) for each in fields(setup)}
        del rest["clients"]
        self._start = ray.put(RayStart(uuid.uuid4().hex, clients.spec, clients.shared, rest))
        self._task = ray.remote(max_retries=_RETRIES)(perform)
        self._sent: tuple[GlobalModel, Any] | None = None

    def train(self, orders: Sequence[VirtualOrder], got: GlobalModel) -> Iterator[TrainingResult]:
        """See :class:`rengo.simulation.backend.Backend`."""
        return cast("Iterator[TrainingResult]", self._do("train", orders, got))

    def evaluate(
        self, orders: Sequence[VirtualOrder], got: GlobalModel
    ) -> Iterator[EvaluationResult]:
        """See :class:`rengo.simulation.backend.Backend`."""
        return cast("Iterator[EvaluationResult]", self._do("evaluate", orders, got))

    def close(self) -> None:
        """See :class:`rengo.simulation.backend.Backend`."""
        self._sent = self._start = None
        if self._ours:
            self._ray.shutdown()
        if self._folder is not None:
            self._folder.cleanup()

    def _connect(self, workers: int) -> None:
        environment = dict.fromkeys(_ONE_THREAD, "1")
        address = os.environ.get("RAY_ADDRESS")
        here: dict[str, Any] = {}
        if not address:
            # Ray leaves its logs and sockets there
            self._folder = tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)
            here = {"num_cpus": workers or None, "include_dashboard": False}
            here["_temp_dir"] = self._folder.name
        try:
            self._ray.init(
                address=address or "local",
                runtime_env={"env_vars": environment},
                log_to_driver=False,
                logging_level="ERROR",
                **here,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            where = f"at {address} (RAY_ADDRESS)" if address else "on this machine"
            raise RunNotCompleted(f"Ray {where} cannot be used: {error}") from error

    def _do(
        self, action: _Action, orders: Sequence[VirtualOrder], got: GlobalModel
    ) -> Iterator[Any]:
        if self._sent is None or self._sent[0].version != got.version:
            self._sent = (got, self._ray.put(got))
        model = self._sent[1]
        waiting = [
            self._task.remote(self._start, model, action, chunk) for chunk in self._chunks(orders)
        ]
        while waiting:
            done, waiting = self._ray.wait(waiting, timeout=_PATIENCE_S)
            if not done:
                self._require_workers()
            for each in done:
                yield from self._received(each)

    def _received(self, reference: Any) -> list[Any]:
        try:
            return cast("list[Any]", self._ray.get(reference))
        except self._ray.exceptions.RayTaskError as error:
            raise RunNotCompleted(f"a worker of Ray failed: {error.cause}") from error
        except self._ray.exceptions.RayError as error:
            told = str(error).partition("\n")[0]
            raise RunNotCompleted(
                f"Ray lost its worker {1 + _RETRIES} times with the same clients: {told}"
            ) from error

    def _require_workers(self) -> None:
        """Raise where nobody could do what waits."""
        if self._ray.cluster_resources().get("CPU", 0) < 1:
            raise RunNotCompleted("the Ray cluster has no CPU that could train a client")

    def _chunks(self, orders: Sequence[VirtualOrder]) -> list[list[VirtualOrder]]:
        """Return the orders in parts, several for each CPU."""
        workers = int(self._ray.cluster_resources().get("CPU", 1)) or 1
        size = max(1, len(orders) // (workers * _CHUNKS_A_WORKER))
        return [list(orders[at : at + size]) for at in range(0, len(orders), size)]


def perform(
    start: RayStart, got: GlobalModel, action: _Action, orders: Sequence[VirtualOrder]
) -> list[TrainingResult | EvaluationResult]:
    """Do some orders in a worker of Ray."""
    backend = start.backend()
    if action == "train":
        return list(backend.train(orders, got))
    return list(backend.evaluate(orders, got))


def _ray() -> ModuleType:
    try:
        import ray  # noqa: PLC0415  an extra
    except ImportError as error:
        raise MissingExtra("ray", "ray") from error
    found: ModuleType = ray
    return found
