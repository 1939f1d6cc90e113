"""Follows production: holds the model that was promoted last, of every installed task.

The follower belongs to the agent's owner thread. Downloads run on the agent's transfer thread. The
transfers of a round have precedence: a download stops for them, and resumes after them.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from broker.wire.messages import ModelOffer, ProductionDocument
from fl_client.production.folder import HeldModel, ProductionFolder
from runtime.backoff import Backoff
from runtime.errors import AccessDenied, Corrupt, PeerError, RengoError
from runtime.security.signing import PublicKey
from storage.transfer.files import Cancelled, Transfers

if TYPE_CHECKING:
    from storage.versions.manifest import Manifest

_LOG = logging.getLogger(__name__)
_OFFER_S = 30.0
_FIRST_PAUSE_S = 5.0
_LONGEST_PAUSE_S = 600.0


@dataclass(eq=False)
class PendingDownload:
    """A version that is to be downloaded, or whose held copy is to be checked.

    Attributes:
        document: the manifest's signed file.
        due_s: when to request a URL again.
    """

    promotion: int
    manifest: Manifest
    document: bytes
    url: str = ""
    # random, so that a fleet whose store was down does not return at the same moment
    backoff: Backoff = field(
        default_factory=lambda: Backoff(_FIRST_PAUSE_S, _LONGEST_PAUSE_S, factor=3.0, least=0.5)
    )
    due_s: float = 0.0
    cancelled: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class DownloadEnded:
    """A download or a check ended.

    Attributes:
        held: the version, if it is held now.
        error: why it is not; None also if the download was interrupted for a round.
        damaged: whether it was held until now.
    """

    task: str
    download: PendingDownload
    held: HeldModel | None = None
    error: Exception | None = None
    damaged: bool = False


class ProductionFollower:
    """Holds the last good production version of each task.

    Args:
        folder: that of the versions.
        server: whose signature a manifest must have.
        tasks: those that are installed; others are not followed.
        transfers: downloads from the store.
        request_url: publishes a request for a URL, by task and sha256.
        submit: runs work on the transfer thread, and passes its result to ``on_ended``.
        refusal: returns why so many bytes must not be downloaded now, "" when they may.
    """

    def __init__(
        self,
        folder: ProductionFolder,
        server: PublicKey,
        tasks: Iterable[str],
        transfers: Transfers,
        request_url: Callable[[str, str], object],
        submit: Callable[[Callable[[], DownloadEnded]], None],
        refusal: Callable[[int], str] = lambda _: "",
    ) -> None:
        self._folder = folder
        self._server = server
        self._transfers = transfers
        self._request = request_url
        self._submit = submit
        self._refusal = refusal
        self._held: dict[str, HeldModel | None] = {}
        for task in tasks:
            folder.remove_older(task)
            self._held[task] = folder.held(task)
        self._checked: set[str] = set()
        self._pending: dict[str, PendingDownload] = {}

    # --- messages of the server ---------------------------------------------------------------

    def on_document(self, document: ProductionDocument) -> None:
        """Begin to hold the version that is in production.

        Raises:
            PeerError: the manifest is not the server's, or a newer promotion is known.
        """
        task, promotion = document.task, document.promotion
        if task not in self._held:
            return
        manifest = self._manifest(document)
        held, pending = self._held[task], self._pending.get(task)
        known = [(each.promotion, each.manifest.sha256) for each in (held, pending) if each]
        newest = max(known, default=(0, ""))
        if promotion < newest[0] or (promotion == newest[0] and manifest.sha256 != newest[1]):
            raise PeerError(f"promotion {promotion} of {task} after {newest[0]}", "replayed")
        if held is not None and held.manifest.sha256 == manifest.sha256:
            self._check_held(held, document)
        elif pending is not None and pending.manifest.sha256 == manifest.sha256:
            pending.promotion = promotion
            if not pending.url:
                self._request_url(task, pending)
        else:
            self._cancel(task)
            pending = PendingDownload(promotion, manifest, document.manifest)
            self._pending[task] = pending
            self._request_url(task, pending)

    def on_offer(self, offer: ModelOffer) -> None:
        """Download from the URL that was requested."""
        pending = self._pending.get(offer.task)
        if (
            pending is not None
            and not pending.url
            and pending.manifest.sha256 == offer.model.sha256
        ):
            pending.url = offer.model.url
            self._start(offer.task, pending)

    def _manifest(self, document: ProductionDocument) -> Manifest:
        from storage.versions.manifest import Manifest  # noqa: PLC0415  most agents hold no model

        task = document.task
        try:
            manifest = Manifest.decode(document.manifest, self._server, f"production of {task}")
        except RengoError as error:
            raise PeerError(str(error), "manifest") from error
        if manifest.task != task:
            raise PeerError(f"{manifest.name} is of task {manifest.task!r}", "manifest")
        return manifest

    # --- the version that is held -------------------------------------------------------------

    def _check_held(self, held: HeldModel, document: ProductionDocument) -> None:
        """Hold the same version under its new number; check its file once per process."""
        task, promotion = document.task, document.promotion
        self._cancel(task)
        if promotion == held.promotion and task in self._checked:
            return
        check = PendingDownload(promotion, held.manifest, document.manifest)
        # older promotions are refused from here on; the folder is renamed later
        self._held[task] = replace(held, promotion=promotion)
        self._checked.add(task)
        self._submit(lambda: self._verify(task, check))

    def _verify(self, task: str, check: PendingDownload) -> DownloadEnded:
        """Verify and renumber the held version, on the transfer thread."""
        held, sha256 = self._folder.held(task), check.manifest.sha256
        try:
            if held is None or held.manifest.sha256 != sha256 or not self._folder.is_whole(held):
                error = Corrupt("what was held is damaged")
                return DownloadEnded(task, check, error=error, damaged=True)
            if check.promotion > held.promotion:
                held = self._folder.renumber(task, held, check.promotion)
        except OSError as error:
            return DownloadEnded(task, check, error=error)
        return DownloadEnded(task, check, held)

    # --- downloads ----------------------------------------------------------------------------

    def _request_url(self, task: str, pending: PendingDownload) -> None:
        pending.url = ""
        reason = self._refusal(pending.manifest.size_bytes)
        if reason:
            _LOG.warning("%s of task %s waits: %s", pending.manifest.name, task, reason)
            pending.due_s = time.monotonic() + _LONGEST_PAUSE_S
            return
        pending.due_s = time.monotonic() + _OFFER_S
        self._request(task, pending.manifest.sha256)

    def _start(self, task: str, pending: PendingDownload) -> None:
        pending.due_s = math.inf
        pending.cancelled = threading.Event()
        self._submit(lambda: self._download(task, pending))

    def _download(self, task: str, pending: PendingDownload) -> DownloadEnded:
        """Download a version and store it, on the transfer thread."""
        manifest = pending.manifest
        try:
            path = self._folder.incoming(task, manifest.sha256)
            self._transfers.download(
                pending.url,
                path,
                sha256=manifest.sha256,
                size=manifest.size_bytes,
                cancel=pending.cancelled,
            )
            held = self._folder.store(task, pending.promotion, pending.document, manifest)
        except Cancelled:
            return DownloadEnded(task, pending)
        except (RengoError, OSError) as error:
            return DownloadEnded(task, pending, error=error)
        return DownloadEnded(task, pending, held)

    def on_ended(self, ended: DownloadEnded) -> None:
        """Apply the result of what was submitted."""
        task, download = ended.task, ended.download
        if ended.held is not None:
            self._hold(task, download, ended.held)
            return
        if ended.error is not None:
            _LOG.warning("%s of task %s: %s", download.manifest.name, task, ended.error)
        if ended.damaged and task not in self._pending:
            self._held[task] = None
            self._pending[task] = download
            self._request_url(task, download)
        elif self._pending.get(task) is download:
            self._retry(task, download, ended.error)

    def _hold(self, task: str, download: PendingDownload, held: HeldModel) -> None:
        known, promotion = self._held[task], max(held.promotion, download.promotion)
        if known is None or promotion >= known.promotion:
            self._held[task] = replace(held, promotion=promotion)
        self._checked.add(task)
        if self._pending.get(task) is download:
            del self._pending[task]
            _LOG.info("%s of task %s is held", download.manifest.name, task)
            if download.promotion > held.promotion:  # promoted again meanwhile
                self._submit(lambda: self._verify(task, download))

    def _retry(self, task: str, pending: PendingDownload, error: Exception | None) -> None:
        if error is None:
            self._start(task, pending)  # after the transfers for which it was interrupted
        elif isinstance(error, AccessDenied) and not pending.backoff.attempts:
            pending.backoff.next_s()  # counts: a second refusal waits
            self._request_url(task, pending)  # its URL has expired
        else:
            pending.url = ""
            pending.due_s = time.monotonic() + pending.backoff.next_s()

    # --- called by the agent ------------------------------------------------------------------

    def interrupt(self) -> None:
        """Interrupt downloads, so that a round's transfer runs first."""
        for pending in self._pending.values():
            pending.cancelled.set()

    stop = interrupt

    def left_s(self, now_s: float) -> float | None:
        """Return how long until ``poll`` is due, None for never."""
        due_s = min((pending.due_s for pending in self._pending.values()), default=math.inf)
        return None if due_s == math.inf else max(0.0, due_s - now_s)

    def poll(self, now_s: float) -> None:
        """Request again the URLs that are overdue."""
        for task, pending in self._pending.items():
            if pending.due_s <= now_s:
                self._request_url(task, pending)

    def _cancel(self, task: str) -> None:
        pending = self._pending.pop(task, None)
        if pending is not None:
            pending.cancelled.set()
