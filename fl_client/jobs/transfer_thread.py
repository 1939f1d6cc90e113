"""What goes to and from the store for an agent's jobs: on one thread, in order, told as events.

The owner's thread calls; what a transfer comes to is posted to the owner's inbox.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from fl_client.bundles.store import DeviceBundles
from fl_client.jobs.folder import DeviceFolder
from fl_client.jobs.transfer import JobTransfers, TransferContext
from fl_client.session.events import Event, Job, JobKey, ModelFetched
from storage.transfer.files import Transfers


@dataclass(frozen=True)
class UrlsAsked:
    """A transfer needs fresh URLs."""

    key: JobKey


@dataclass(frozen=True)
class TransferCrashed:
    """A transfer ended with an error that nobody foresaw; ``what`` is its job, if it has one."""

    what: JobKey | None
    error: BaseException


class TransferThread:
    """Carries models, bundles and updates.

    Args:
        bundles: makes ready what an order's task comes as, where it is not installed.
        installed: the tasks that are.
        post: takes what ended; only enqueues.
    """

    def __init__(
        self,
        transfers: Transfers,
        folder: DeviceFolder,
        bundles: DeviceBundles,
        installed: frozenset[str],
        post: Callable[[object], None],
    ) -> None:
        self._folder = folder
        self._bundles = bundles
        self._installed = installed
        self._post = post
        self._transfers = JobTransfers(transfers, lambda key: post(UrlsAsked(key)))
        self._leases: dict[JobKey, TransferContext] = {}
        self._thread = ThreadPoolExecutor(1, "transfer")

    def fetch(self, job: Job) -> None:
        """Bring the order's bundle and its model, where it has them."""
        lease, folder = self._lease(job), self._folder

        def work() -> Event | None:
            if job.order.task not in self._installed:
                refused = self._transfers.prepare(lease, self._bundles)
                if refused is not None:
                    return refused
            if job.order.model is None:
                return None if lease.cancelled.is_set() else ModelFetched(job.key)
            path, earlier = folder.model(job), folder.earlier_model(job)
            return self._transfers.fetch(lease, path, earlier)

        self._submit(job.key, work)

    def upload(self, job: Job) -> None:
        """Bring the update to the store."""
        lease, path = self._lease(job), self._folder.update(job.key)
        self._submit(job.key, lambda: self._transfers.upload(lease, path))

    def renew(self, job: Job) -> None:
        """Take the URLs of an order that came again."""
        if job.key in self._leases:
            self._leases[job.key].renew(job)

    def cancel(self, key: JobKey) -> None:
        """End a job's transfer at its next block, and leave nothing of a model half fetched."""
        lease = self._leases.get(key)
        if lease is not None:
            lease.cancel()
            # after the cancelled download has let go of its file
            self._submit(key, lambda: self._folder.drop_partial_model(lease.job))

    def forget(self, key: JobKey) -> None:
        """Forget what a job's transfers cost."""
        self._leases.pop(key, None)

    def spent(self, key: JobKey) -> TransferContext | None:
        """Return what a job's transfers cost, None when this process knows of none."""
        return self._leases.get(key)

    def forget_models(self, run_id: str) -> None:
        """Remove a run's models, after a download that was just cancelled."""
        self._thread.submit(self._folder.forget_models, run_id)

    def do(self, work: Callable[[], object]) -> None:
        """Do work that is no job's, after what was begun before; what it returns is posted."""
        self._submit(None, work)

    def cancel_all(self) -> None:
        """End every transfer at its next block."""
        for lease in self._leases.values():
            lease.cancel()

    def stop(self) -> None:
        """Wait for what is at work and drop the rest."""
        self._thread.shutdown(cancel_futures=True)

    def _lease(self, job: Job) -> TransferContext:
        lease = self._leases.get(job.key)
        if lease is None or lease.cancelled.is_set():
            lease = self._leases[job.key] = TransferContext(job)
        return lease

    def _submit(self, what: JobKey | None, work: Callable[[], object]) -> None:
        def ended(future: Future[object]) -> None:
            if future.cancelled():
                return
            error = future.exception()
            result = TransferCrashed(what, error) if error is not None else future.result()
            if result is not None:
                self._post(result)

        self._thread.submit(work).add_done_callback(ended)
