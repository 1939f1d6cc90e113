"""A job's transfers, which can be cancelled and whose URLs are renewed.

Each runs on the agent's one transfer thread and ends as an event. A store that cannot be reached
costs time only: the transfer tries again until the job is cancelled, which happens when the run
goes on without it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
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


@dataclass(frozen=True)
class TransferCost:
    """What a job's transfers took."""

    bytes_down: int
    bytes_up: int
    transfer_s: float


class TransferContext:
    """One job's URLs, whether it still matters, and what its transfers took. Thread-safe."""

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
        """Use the URLs of an order that came again (owner's thread)."""
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
    def cost(self) -> TransferCost:
        """What the transfers took so far."""
        return TransferCost(self.bytes_down, self.bytes_up, self.transfer_s)

    @property
    def job(self) -> Job:
        """The job with its latest URLs."""
        with self._changed:
            return self._job

    def request_fresh_urls(self, request: Callable[[JobKey], None]) -> Job:
        """Request fresh URLs and wait for them.

        Raises:
            AccessDenied: none came in time.
        """
        with self._changed:
            before = self._version
        request(self.key)
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
        request: publishes a request for fresh URLs; called on the transfer thread.
    """

    def __init__(self, transfers: Transfers, request: Callable[[JobKey], None]) -> None:
        self._transfers = transfers
        self._request = request

    def fetch(
        self,
        context: TransferContext,
        path: Path,
        vectors: Path | None = None,
        earlier: EarlierVersion | None = None,
    ) -> ModelFetched | JobFailed | None:
        """Bring the order's model to ``path``; None when the job was cancelled.

        Args:
            vectors: where the algorithm's server vectors go, where the order names some.
            earlier: a version of the model that is here, which most of it may be taken from.
        """
        reference = context.job.model

        def fresh_vectors() -> str:
            fresh = context.request_fresh_urls(self._request).order.vectors
            if fresh is None:
                raise AccessDenied(f"no fresh URL for the vectors of {context.key}")
            return fresh.url

        def work() -> None:
            named = context.job.order.vectors
            if vectors is not None and named is not None:
                context.bytes_down += self._transfers.download(
                    named.url,
                    vectors,
                    sha256=named.sha256,
                    size=named.size_bytes,
                    renew=fresh_vectors,
                    cancel=context.cancelled,
                )
            context.bytes_down += self._transfers.download(
                context.job.model.url,
                path,
                sha256=reference.sha256,
                size=reference.size_bytes,
                renew=lambda: context.request_fresh_urls(self._request).model.url,
                cancel=context.cancelled,
                earlier=earlier,
            )

        failure = self._with_retries(context, work)
        return failure or (None if context.cancelled.is_set() else ModelFetched(context.key))

    def prepare(self, context: TransferContext, bundles: DeviceBundles) -> JobFailed | None:
        """Make the order's bundle ready to run; None when it is, or the job was cancelled."""

        def renewed() -> str:
            fresh = context.request_fresh_urls(self._request).order.bundle
            if fresh is None:
                raise AccessDenied(f"no fresh URL for the bundle of {context.key}")
            return fresh.url

        def work() -> None:
            context.bytes_down += bundles.prepare(context.job.order, renewed, context.cancelled)

        return self._with_retries(context, work)

    def upload(self, context: TransferContext, path: Path) -> UpdateUploaded | JobFailed | None:
        """Bring the update at ``path`` to the store; None when the job was cancelled."""

        def work() -> None:
            parts = _parts(context.job.upload)
            if parts is not None and parts.fits(path.stat().st_size):
                context.bytes_up += self._send_parts(context, path, parts)
            else:
                context.bytes_up += self._send(context, path)

        failure = self._with_retries(context, work)
        return failure or (None if context.cancelled.is_set() else UpdateUploaded(context.key))

    def _send(self, context: TransferContext, path: Path) -> int:
        return self._transfers.upload(
            context.job.upload.url,
            path,
            headers=context.job.upload.headers,
            renew=lambda: context.request_fresh_urls(self._request).upload.url,
            cancel=context.cancelled,
        )

    def _send_parts(self, context: TransferContext, path: Path, parts: MultipartTarget) -> int:
        def renew() -> MultipartTarget:
            fresh = _parts(context.request_fresh_urls(self._request).upload)
            if fresh is None:
                raise AccessDenied(f"no fresh URLs for the parts of {context.key}")
            return fresh

        return self._transfers.upload_in_parts(parts, path, renew=renew, cancel=context.cancelled)

    def _with_retries(self, context: TransferContext, work: Callable[[], None]) -> JobFailed | None:
        attempts = retrying_until(context.cancelled, (Unavailable, AccessDenied), _log_waiting)
        begun_s = time.monotonic()
        try:
            attempts(work)
        except Cancelled:
            return None
        except (RengoError, OSError) as error:
            return None if context.cancelled.is_set() else JobFailed(context.key, str(error)[:2000])
        context.transfer_s += time.monotonic() - begun_s
        return None


def _parts(upload: UploadRef) -> MultipartTarget | None:
    found = upload.parts
    if found is None:
        return None
    return MultipartTarget(found.upload_id, found.part_bytes, found.urls, found.complete_url)


def _log_waiting(error: BaseException) -> None:
    _LOG.warning("waiting for the store: %s", error)
