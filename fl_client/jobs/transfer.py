"""A job's transfers: patient with the store, obedient to cancellation, with URLs that renew.

Each runs on the agent's one transfer thread and ends as an event. A store that cannot be reached
costs time only: the transfer tries again until the job is cancelled, which happens when the run
goes on without it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from broker.wire.messages import UploadRef
from fl_client.bundles.store import DeviceBundles
from fl_client.session.events import (
    Job,
    JobFailed,
    JobKey,
    ModelFetched,
    UpdateUploaded,
)
from runtime.errors import AccessDenied, RengoError, Unavailable
from runtime.retry import retrying_until
from storage.transfer.byte_ranges import EarlierVersion
from storage.transfer.files import Cancelled, Transfers
from storage.transfer.multipart import MultipartTarget

_LOG = logging.getLogger(__name__)
_RENEWAL_S = 20.0


class TransferContext:
    """One job's URLs and whether it still matters. Thread-safe."""

    def __init__(self, job: Job) -> None:
        self.key: JobKey = job.key
        self.cancelled = threading.Event()
        self.bytes_down = 0
        self.bytes_up = 0
        self.transfer_s = 0.0
        self._job = job
        self._changed = threading.Condition()
        self._version = 0

    def renew(self, job: Job) -> None:
        """Take the URLs of an order that came again (owner's thread)."""
        with self._changed:
            self._job = job
            self._version += 1
            self._changed.notify_all()

    def cancel(self) -> None:
        """Stop the transfer at its next block (owner's thread)."""
        self.cancelled.set()
        with self._changed:
            self._changed.notify_all()

    @property
    def job(self) -> Job:
        """The job with its latest URLs."""
        with self._changed:
            return self._job

    def fresh(self, ask: Callable[[JobKey], None]) -> Job:
        """Ask for fresh URLs and wait for them.

        Raises:
            AccessDenied: none came in time.
        """
        with self._changed:
            before = self._version
        ask(self.key)
        with self._changed:
            self._changed.wait_for(
                lambda: self._version > before or self.cancelled.is_set(), _RENEWAL_S
            )
            if self._version == before:
                raise AccessDenied(f"no fresh URL for {self.key} within {_RENEWAL_S:.0f} s")
            return self._job


class JobTransfers:
    """The two transfers of a job.

    Args:
        ask: publishes a request for fresh URLs; called on the transfer thread.
    """

    def __init__(self, transfers: Transfers, ask: Callable[[JobKey], None]) -> None:
        self._transfers = transfers
        self._ask = ask

    def fetch(
        self, lease: TransferContext, path: Path, earlier: EarlierVersion | None = None
    ) -> ModelFetched | JobFailed | None:
        """Bring the order's model to ``path``; None when the job was cancelled.

        Args:
            earlier: a version of the model that is here, which most of it may be taken from.
        """
        reference = lease.job.model

        def work() -> None:
            lease.bytes_down += self._transfers.download(
                lease.job.model.url,
                path,
                sha256=reference.sha256,
                size=reference.size_bytes,
                renew=lambda: lease.fresh(self._ask).model.url,
                cancel=lease.cancelled,
                earlier=earlier,
            )

        failure = self._patiently(lease, work)
        return failure or (None if lease.cancelled.is_set() else ModelFetched(lease.key))

    def prepare(self, lease: TransferContext, bundles: DeviceBundles) -> JobFailed | None:
        """Make the order's bundle ready to run; None when it is, or the job was cancelled."""

        def renewed() -> str:
            fresh = lease.fresh(self._ask).order.bundle
            if fresh is None:
                raise AccessDenied(f"no fresh URL for the bundle of {lease.key}")
            return fresh.url

        def work() -> None:
            lease.bytes_down += bundles.prepare(lease.job.order, renewed, lease.cancelled)

        return self._patiently(lease, work)

    def upload(self, lease: TransferContext, path: Path) -> UpdateUploaded | JobFailed | None:
        """Bring the update at ``path`` to the store; None when the job was cancelled."""

        def work() -> None:
            parts = _parts(lease.job.upload)
            if parts is not None and parts.fits(path.stat().st_size):
                lease.bytes_up += self._send_parts(lease, path, parts)
            else:
                lease.bytes_up += self._send(lease, path)

        failure = self._patiently(lease, work)
        return failure or (None if lease.cancelled.is_set() else UpdateUploaded(lease.key))

    def _send(self, lease: TransferContext, path: Path) -> int:
        return self._transfers.upload(
            lease.job.upload.url,
            path,
            headers=lease.job.upload.headers,
            renew=lambda: lease.fresh(self._ask).upload.url,
            cancel=lease.cancelled,
        )

    def _send_parts(self, lease: TransferContext, path: Path, parts: MultipartTarget) -> int:
        def renew() -> MultipartTarget:
            fresh = _parts(lease.fresh(self._ask).upload)
            if fresh is None:
                raise AccessDenied(f"no fresh URLs for the parts of {lease.key}")
            return fresh

        return self._transfers.upload_in_parts(parts, path, renew=renew, cancel=lease.cancelled)

    def _patiently(self, lease: TransferContext, work: Callable[[], None]) -> JobFailed | None:
        attempts = retrying_until(lease.cancelled, (Unavailable, AccessDenied), _log_waiting)
        begun_s = time.monotonic()
        try:
            attempts(work)
        except Cancelled:
            return None
        except (RengoError, OSError) as error:
            return None if lease.cancelled.is_set() else JobFailed(lease.key, str(error)[:2000])
        lease.transfer_s += time.monotonic() - begun_s
        return None


def _parts(upload: UploadRef) -> MultipartTarget | None:
    found = upload.parts
    if found is None:
        return None
    return MultipartTarget(found.upload_id, found.part_bytes, found.urls, found.complete_url)


def _log_waiting(error: BaseException) -> None:
    _LOG.warning("waiting for the store: %s", error)
