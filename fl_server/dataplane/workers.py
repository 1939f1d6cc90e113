"""Threads for work that blocks; how each piece of work ended comes back to the owner's thread.

Work that changes what a run has in the store is done in order, run by run; so is what changes the
registry, for all runs together. Other work is done on a small pool. A store that cannot be reached
costs time: work tries again until it is back or the server stops.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from fl_server.dataplane.lanes import Lanes
from fl_server.dataplane.patience import Patience, Waiting
from fl_server.flows.commands import StartTask
from runtime.errors import RengoError

_LOG = logging.getLogger(__name__)
T = TypeVar("T")

_POOL_THREADS = 4
# no run has this name
_REGISTRY = "model registry"


@dataclass(frozen=True)
class JobDone:
    """A flow's task ended with an event for the flow."""

    run_id: str
    event: object


@dataclass(frozen=True)
class TaskDone:
    """A task of no flow ended; ``then`` continues it on the owner's thread."""

    then: Callable[[], None]


@dataclass(frozen=True)
class JobCrashed:
    """A job ended with an error that nobody foresaw: our bug, or this machine's trouble.

    ``run_id`` is "" where it was no flow's.
    """

    run_id: str
    error: BaseException


Done: TypeAlias = JobDone | TaskDone | JobCrashed


class Workers:
    """The threads of one server.

    Args:
        post: accepts what ended; called on the workers' threads, only enqueues.
        serves: whether the store serves at all, where one object fails.
    """

    def __init__(self, post: Callable[[Done], None], serves: Callable[[], bool]) -> None:
        self._post = post
        self._stopping = threading.Event()
        self._patience = Patience(self._stopping, serves)
        self._pool = ThreadPoolExecutor(_POOL_THREADS, "verify")
        self._lanes = Lanes()
        # one thread, so that an order that is asked for twice has one upload
        self._uploading = ThreadPoolExecutor(1, "uploads")

    def stop(self) -> None:
        """Let running work end without retries and drop the rest."""
        self._stopping.set()
        for threads in (self._pool, self._uploading):
            threads.shutdown(cancel_futures=True)
        self._lanes.shutdown()

    def start_job(self, run_id: str, task: StartTask) -> None:
        """Do a flow's task; its event, or that of its error, is posted as ``JobDone``."""

        def ended(future: Future[object | None]) -> None:
            if future.cancelled() or self._stopping.is_set():
                return
            error = future.exception()
            if error is None:
                event = future.result()
            elif isinstance(error, RengoError) and task.failed is not None:
                event = task.failed(error)
            else:
                self._post(JobCrashed(run_id, error))
                return
            if event is not None:
                self._post(JobDone(run_id, event))

        if not task.lane:
            self._pool.submit(task.work).add_done_callback(ended)
            return
        lane = run_id if task.lane == "run" else _REGISTRY
        self._lanes.submit(lane, task.work).add_done_callback(ended)

    def start_task(
        self,
        work: Callable[[], T],
        then: Callable[[T], None],
        failed: Callable[[RengoError], None],
        *,
        in_order: bool = False,
        run_id: str = "",
    ) -> None:
        """Do ``work`` on a thread, then call ``then`` or ``failed`` on the owner's thread.

        An error that nobody foresaw is posted as ``JobCrashed`` and given to ``failed`` too, so
        that nobody waits for ever.

        Args:
            in_order: after all earlier changes of the registry, or the byte work of ``run_id``.
        """
        lane = run_id or _REGISTRY
        future = self._lanes.submit(lane, work) if in_order else self._pool.submit(work)
        self._tell(future, then, failed)

    def start_upload(
        self,
        work: Callable[[], T],
        then: Callable[[T], None],
        failed: Callable[[RengoError], None],
    ) -> None:
        """As ``start_task``, on the thread that begins and ends uploads in parts."""
        self._tell(self._uploading.submit(lambda: self.patiently(work)), then, failed)

    def in_order(self, work: Callable[[], None], run_id: str = "") -> None:
        """Do ``work`` after the run's earlier work, or after earlier changes of the registry.

        Nobody waits for its end.
        """
        lane = run_id or _REGISTRY
        future = self._lanes.submit(lane, lambda: self.patiently(work, run_id))
        self._tell(future, _nothing, self._unexpected)

    def patiently(self, work: Callable[[], T], run_id: str = "") -> T:
        """See :meth:`fl_server.dataplane.patience.Patience.until_done`."""
        return self._patience.until_done(work, run_id)

    def waiting(self, run_id: str) -> Waiting | None:
        """Return what a run's work waits for, None where none does."""
        return self._patience.waiting(run_id)

    def _tell(
        self, future: Future[T], then: Callable[[T], None], failed: Callable[[RengoError], None]
    ) -> None:
        def ended(future: Future[T]) -> None:
            if future.cancelled() or self._stopping.is_set():
                return
            error = future.exception()
            if error is None:
                result = future.result()
                self._post(TaskDone(lambda: then(result)))
            elif isinstance(error, RengoError):
                named = error
                self._post(TaskDone(lambda: failed(named)))
            else:
                self._post(JobCrashed("", error))
                told = RengoError(f"internal error: {type(error).__name__}: {error}")
                self._post(TaskDone(lambda: failed(told)))

        future.add_done_callback(ended)

    def _unexpected(self, error: RengoError) -> None:
        _LOG.error("work in order failed", exc_info=error)


def _nothing(_: None) -> None:
    """Nobody waits for it."""
