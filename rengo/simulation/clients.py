"""The virtual clients of a simulation: who they are, and what data each has.

Data that all devices have whole are loaded and divided once; a client's part is cut out when it is
needed, and the latest are kept up to a bound. So many clients cost no more than their number.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fl_client.datasets.device import Device
from fl_client.tasks._shared_data import Pool, SharedDataTask
from fl_client.tasks.base import Task
from fl_client.tasks.registry import load_task
from fl_client.tasks.user_code import splits_of

if TYPE_CHECKING:
    from fl_client.tasks.split import Split

EVALUATOR = -1
"""The number of the one virtual client that measures the model on data nobody trains on."""

EVALUATOR_ID = "evaluator-1"
CACHE_BYTES = 192 << 20
"""How much of what clients have is kept: a process has MNIST's whole training set in it."""


@dataclass(frozen=True)
class ClientsSpec:
    """The virtual clients, as plain data that a process can be started with.

    Attributes:
        task: a task's name or ``FILE.py:CLASS``.
        count: how many clients train.
        seed: what shared data are divided by.
        partition: how; empty: as the task has it.
        folders: a folder of data for each client, where each has one.
        evaluator_folder: that of the evaluator.
        ids: the clients' device ids, by which they are drawn; made up where there are none.
        profile: of the clients.
    """

    task: str
    count: int
    seed: int = 0
    partition: str = ""
    folders: tuple[Path, ...] = ()
    evaluator_folder: Path | None = None
    ids: tuple[str, ...] = ()
    profile: str = "cpu"

    def device_id(self, client: int) -> str:
        """Return a client's device id.

        >>> ClientsSpec("digits", 100).device_id(42)
        'client-00042'
        """
        if client == EVALUATOR:
            return EVALUATOR_ID
        return self.ids[client] if self.ids else f"client-{client:05d}"

    def device(self, client: int) -> Device:
        """Return the device that the task gives data to."""
        is_evaluator = client == EVALUATOR
        folder = self.evaluator_folder if is_evaluator else None
        if self.folders and not is_evaluator:
            folder = self.folders[client]
        return Device(
            self.device_id(client),
            index=0 if is_evaluator else client,
            count=self.count,
            role="evaluator" if is_evaluator else "trainer",
            seed=self.seed,
            profile=self.profile,
            folder=folder,
            partition=self.partition,
        )


@dataclass(frozen=True, eq=False)
class SharedData:
    """A data set that is divided over the clients, and which examples each client has.

    Attributes:
        parts: the clients' examples one client after the other; client i's are those from
            ``starts[i]`` to ``starts[i + 1]``.
    """

    pool: Pool
    parts: NDArray[np.int64]
    starts: NDArray[np.int64]

    def part(self, client: int) -> NDArray[np.int64]:
        """Return the examples of a client."""
        return self.parts[self.starts[client] : self.starts[client + 1]]


class VirtualClients:
    """The clients' devices and data.

    Args:
        task: what ``spec`` names, where it is loaded already.
        shared: the divided data set, where another process has it.
        cache_bytes: how much of the clients' own parts is kept in memory.

    Raises:
        ConfigError: the task cannot be loaded, or its data not be divided so.
    """

    def __init__(
        self,
        spec: ClientsSpec,
        task: Task | None = None,
        shared: SharedData | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.spec = spec
        self.task = task or load_task(spec.task)
        self._recent: OrderedDict[int, tuple[Split, Split]] = OrderedDict()
        self._recent_bytes, self._cache_bytes = 0, cache_bytes
        if shared is not None:
            self.share(shared)

    @cached_property
    def ids(self) -> Sequence[str]:
        """The device ids of the clients that train."""
        return [self.spec.device_id(client) for client in range(self.spec.count)]

    @cached_property
    def shared(self) -> SharedData | None:
        """The divided data set; None where the task gives each client its own."""
        task, device = self.task, self.spec.device(0)
        if not isinstance(task, SharedDataTask) or not task.is_divided(device):
            return None
        if self.spec.folders:
            return None
        pool = task.pool(device)
        parts = task.parts(pool, device)
        starts = np.cumsum([0, *(len(part) for part in parts)], dtype=np.int64)
        return SharedData(pool, np.concatenate(parts), starts)

    def share(self, shared: SharedData) -> None:
        """Take the divided data set from elsewhere, as from a file that processes share."""
        self.__dict__["shared"] = shared
        self._recent.clear()
        self._recent_bytes = 0

    def splits(self, client: int) -> tuple[Split, Split]:
        """Return what a client learns from, and what it holds out.

        Raises:
            TaskError: the task's ``data()`` failed.
        """
        found = self._recent.get(client)
        if found is not None:
            self._recent.move_to_end(client)
            return found
        found = self._load(client)
        self._recent[client] = found
        self._recent_bytes += _size(found)
        while self._recent_bytes > self._cache_bytes and len(self._recent) > 1:
            _, oldest = self._recent.popitem(last=False)
            self._recent_bytes -= _size(oldest)
        return found

    def _load(self, client: int) -> tuple[Split, Split]:
        device, shared = self.spec.device(client), self.shared
        if shared is None or not isinstance(self.task, SharedDataTask):
            return splits_of(self.task, device)
        if client == EVALUATOR:
            return None, self.task.evaluators_part(shared.pool, device)
        return self.task.trainers_part(shared.pool, shared.part(client), device)


def _size(splits: tuple[Split, Split]) -> int:
    """Return the bytes of splits that are arrays; others are the task's own to bound."""
    arrays: list[Any] = [each for split in splits if isinstance(split, tuple) for each in split]
    return sum(getattr(each, "nbytes", 0) for each in arrays)
