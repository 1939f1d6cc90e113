"""An agent's transfers with the store: on one thread, in order; how each ends is an event.

The owner's thread calls; the events go to its inbox.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from fl_client.bundles.store import DeviceBundles
from fl_client.jobs.folder import DeviceFolder
from fl_client.jobs.transfer import JobTransfers, TransferContext, TransferCost
from fl_client.session.events import Event, Job, JobKey, ModelFetched
from storage.transfer.files import Transfers


@dataclass(frozen=True)
class UrlsNeeded:
    """A transfer needs fresh URLs."""

    key: JobKey


@dataclass(frozen=True)
class TransferCrashed:
    """A transfer ended with an unexpected error; ``what`` is its job, if it has one."""

    what: JobKey | None
    error: BaseException


class TransferThread:
    """Moves models, bundles and updates.

    Args:
        bundles: fetches the bundle of a task that is not installed.
        installed: the tasks that are.
        post: takes an event; only enqueues.
    """

    def __init__(
        self,
        transfers: Transfers,
        folder: DeviceFolder,
        bundles: DeviceBundles,
        installed: Container[str],
        post: Callable[[object], None],
    ) -> None:
        self._folder = folder
        self._bundles = bundles
        self._installed = installed
        self._post = post
        self._transfers = JobTransfers(transfers, lambda key: post(UrlsNeeded(key)))
        self._contexts: dict[JobKey, TransferContext] = {}
        self._thread = ThreadPoolExecutor(1, "transfer")

    def fetch(self, job: Job) -> None:
        """Bring the order's bundle and its model, where it has them."""
        context, folder = self._context(job), self._folder

        def work() -> Event | None:
            if job.order.task not in self._installed:
                refused = self._transfers.prepare(context, self._bundles)
                if refused is not None:
                    return refused
            if job.order.model is None:
                return None if context.cancelled.is_set() else ModelFetched(job.key)
            path, earlier = folder.model(job), folder.earlier_model(job)
            return self._transfers.fetch(context, path, folder.vectors(job), earlier)

        self._submit(job.key, work)

    def upload(self, job: Job) -> None:
        """Bring the update to the store."""
        context, path = self._context(job), self._folder.update(job.key)
        self._submit(job.key, lambda: self._transfers.upload(context, path))

    def renew(self, job: Job) -> None:
        """Use the URLs of an order that came again."""
        if job.key in self._contexts:
            self._contexts[job.key].renew(job)

    def cancel(self, key: JobKey) -> None:
        """End a job's transfer at its next block, and remove a partial download of its model."""
        context = self._contexts.get(key)
        if context is not None:
            context.cancel()
            # after the cancelled download has closed its file
            self._submit(key, lambda: self._folder.remove_partial_model(context.job))

    def forget(self, key: JobKey) -> None:
        """Drop what is known of a job that has ended."""
        self._contexts.pop(key, None)

    def cost(self, key: JobKey) -> TransferCost | None:
        """Return what a job's transfers took, None when this process knows of none."""
        context = self._contexts.get(key)
        return None if context is None else context.cost

    def remove_models(self, run_id: str) -> None:
        """Remove a run's models, after a download that was just cancelled."""
        self._thread.submit(self._folder.remove_models, run_id)

    def run(self, work: Callable[[], object]) -> None:
        """Run work that is no job's, after what was begun before; what it returns is posted."""
        self._submit(None, work)

    def cancel_all(self) -> None:
        """End every transfer at its next block."""
        for context in self._contexts.values():
            context.cancel()

    def stop(self) -> None:
        """Wait for what is at work and drop the rest."""
        self._thread.shutdown(cancel_futures=True)

    def _context(self, job: Job) -> TransferContext:
        context = self._contexts.get(job.key)
        if context is None or context.cancelled.is_set():
            context = self._contexts[job.key] = TransferContext(job)
        return context

    def _submit(self, what: JobKey | None, work: Callable[[], object]) -> None:
        def ended(future: Future[object]) -> None:
            if future.cancelled():
                return
            error = future.exception()
            result = TransferCrashed(what, error) if error is not None else future.result()
            if result is not None:
                self._post(result)

        self._thread.submit(work).add_done_callback(ended)
