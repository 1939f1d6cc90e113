"""Runs the agent's collectors: one process for each source, restarted when it ends."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Mapping, Sequence

from fl_client.collectors.order import CollectorOrder
from fl_client.collectors.places import unread_sensors
from fl_client.datasets.settings import DataPlace, Gathered
from fl_client.own_packages import command
from fl_client.settings import AgentSettings
from runtime.backoff import Backoff
from runtime.errors import ConfigError
from runtime.processes.child import Child
from runtime.processes.logs import LogBound

_LOG = logging.getLogger(__name__)
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 300.0
_STABLE_S = 60.0
_GRACE_S = 5.0
_LOG_MAX_BYTES = 1 << 20


class Collectors:
    """Keeps the collectors running, from ``start`` to ``stop``.

    Args:
        specs: the argument for ``load_task`` of each installed task.
    """

    def __init__(
        self,
        device_id: str,
        settings: AgentSettings,
        found: Sequence[DataPlace],
        specs: Mapping[str, str],
    ) -> None:
        unread = unread_sensors(settings, [*specs])
        for task in unread:
            _LOG.warning("the sensor of task %s is not read: the task is not installed here", task)
        self._collectors = [
            _SupervisedCollector(
                CollectorOrder(
                    place=place,
                    spec=specs.get(place.task, ""),
                    device_id=device_id,
                    index=settings.index,
                    count=settings.count,
                    role=settings.role,
                    seed=settings.data_seed,
                    profile=settings.profile,
                    folder=settings.folder,
                )
            )
            for place in found
            if isinstance(place.settings.source, Gathered) and place.task not in unread
        ]

    def start(self) -> None:
        """Start them, each supervised by a thread."""
        for each in self._collectors:
            each.start()

    def stop(self) -> None:
        """Terminate all, and wait until they have written their samples."""
        for each in self._collectors:
            each.terminate()
        for each in self._collectors:
            each.stop()


class _SupervisedCollector:
    """One collector's process. The kernel kills it when the thread that waits for it ends."""

    def __init__(self, order: CollectorOrder) -> None:
        self._order = order
        self._stopping = threading.Event()
        argv = command("fl_client.collectors.process")
        self._process = Child(
            f"the collector of task {order.place.task}",
            [*argv, order.model_dump_json()],
            order.place.folder / "collector.log",
            log_bound=LogBound(_LOG_MAX_BYTES),
        )
        self._lock = threading.Lock()
        name = f"collector-{order.place.task}"
        self._thread = threading.Thread(target=self._supervise, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def terminate(self) -> None:
        with self._lock:
            self._stopping.set()
            self._process.signal(signal.SIGTERM)

    def stop(self) -> None:
        if not self._thread.is_alive():
            return
        self._thread.join(_GRACE_S)
        with self._lock:
            self._process.kill()
        self._thread.join()

    def _supervise(self) -> None:
        backoff = Backoff(_FIRST_PAUSE_S, _LONGEST_PAUSE_S, least=1.0)
        while not self._stopping.is_set():
            began_s = time.monotonic()
            returncode = self._run_once()
            if self._stopping.is_set():
                return
            _LOG.error(
                "%s ended with status %s; see %s",
                *(self._process.name, returncode, self._process.log),
            )
            if time.monotonic() - began_s >= _STABLE_S:
                backoff.reset()
            self._stopping.wait(backoff.next_s())

    def _run_once(self) -> int | None:
        """Run the process until it ends and return its status; None if it cannot be started."""
        try:
            with self._lock:
                if self._stopping.is_set():
                    return None
                self._process.start()
        except ConfigError as error:
            _LOG.error("%s", error)
            return None
        return self._process.wait()
