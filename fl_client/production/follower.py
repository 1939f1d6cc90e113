"""A device follows production: it hears what is promoted, fetches it when nothing else is to do.

The follower belongs to the agent's owner thread. A download is done on the agent's transfer thread
and steps aside for every transfer of a round: it ends where it is, and goes on from there when its
turn comes again.
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
from runtime.errors import AccessDenied, Corrupt, PeerError, RengoError
from runtime.retry import Backoff
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
    """A version that is to be held."""

    promotion: int
    manifest: Manifest
    document: bytes
    url: str = ""
    # a fleet that lost its store must not come back at one moment
    backoff: Backoff = field(
        default_factory=lambda: Backoff(_FIRST_PAUSE_S, _LONGEST_PAUSE_S, factor=3.0, least=0.5)
    )
    due_s: float = 0.0
    cancelled: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class Followed:
    """A download or a check ended.

    Attributes:
        held: the version, where it is held now.
        trouble: why it is not; None also when the download stepped aside.
        damaged: it was held until now.
    """

    task: str
    wish: PendingDownload
    held: HeldModel | None = None
    trouble: Exception | None = None
    damaged: bool = False


class ProductionFollower:
    """Keeps the last good production version of each task.

    Args:
        folder: where they are kept.
        server: whose signature a manifest must bear.
        tasks: those that are installed; others are not followed.
        transfers: the way to the store.
        ask: publishes the wish for a URL.
        submit: has work done on the transfer thread, then gives its end back by ``take``.
        forbids: why so many bytes must not be fetched now, "" when they may.
    """

    def __init__(
        self,
        folder: ProductionFolder,
        server: PublicKey,
        tasks: Iterable[str],
        transfers: Transfers,
        ask: Callable[[str, str], object],
        submit: Callable[[Callable[[], Followed]], None],
        forbids: Callable[[int], str] = lambda _: "",
    ) -> None:
        self._folder = folder
        self._server = server
        self._transfers = transfers
        self._ask = ask
        self._submit = submit
        self._forbids = forbids
        self._held: dict[str, HeldModel | None] = {}
        for task in tasks:
            folder.tidy(task)
            self._held[task] = folder.held(task)
        self._checked: set[str] = set()
        self._wishes: dict[str, PendingDownload] = {}

    # --- what the server says -----------------------------------------------------------------

    def document(self, said: ProductionDocument) -> None:
        """Take the word that a version is in production.

        Raises:
            PeerError: the manifest is not the server's, or a newer promotion was heard of before.
        """
        if said.task not in self._held:
            return
        manifest = self._manifest(said)
        held, wish = self._held[said.task], self._wishes.get(said.task)
        known = [(each.promotion, each.manifest.sha256) for each in (held, wish) if each]
        newest = max(known, default=(0, ""))
        if said.promotion < newest[0] or (
            said.promotion == newest[0] and manifest.sha256 != newest[1]
        ):
            raise PeerError(
                f"promotion {said.promotion} of {said.task} after {newest[0]}", "replayed"
            )
        if held is not None and held.manifest.sha256 == manifest.sha256:
            self._hold_on(held, said)
        elif wish is not None and wish.manifest.sha256 == manifest.sha256:
            wish.promotion = said.promotion
            if not wish.url:
                self._ask_for(said.task, wish)
        else:
            self._wish(manifest, said)

    def offer(self, offer: ModelOffer) -> None:
        """Take the answer to ``ask``."""
        wish = self._wishes.get(offer.task)
        if wish is not None and not wish.url and wish.manifest.sha256 == offer.model.sha256:
            wish.url = offer.model.url
            self._fetch(offer.task, wish)

    def _manifest(self, said: ProductionDocument) -> Manifest:
        from storage.versions.manifest import Manifest  # noqa: PLC0415  most agents hold no model

        try:
            manifest = Manifest.decode(said.manifest, self._server, f"production of {said.task}")
        except RengoError as error:
            raise PeerError(str(error), "manifest") from error
        if manifest.task != said.task:
            raise PeerError(f"{manifest.name} is of task {manifest.task!r}", "manifest")
        return manifest

    # --- keeping what is held -----------------------------------------------------------------

    def _hold_on(self, held: HeldModel, said: ProductionDocument) -> None:
        """Keep the version that is held, under its new number; look once whether it is whole."""
        self._drop_wish(said.task)
        if said.promotion == held.promotion and said.task in self._checked:
            return
        wish = self._new_wish(held.manifest, said)
        # what is older is refused from here on; the disk follows
        self._held[said.task] = replace(held, promotion=said.promotion)
        self._checked.add(said.task)
        self._submit(lambda: self._keep(said.task, wish))

    def _keep(self, task: str, wish: PendingDownload) -> Followed:
        """Do so; on the transfer thread."""
        held, sha256 = self._folder.held(task), wish.manifest.sha256
        try:
            if held is None or held.manifest.sha256 != sha256 or not self._folder.is_whole(held):
                trouble = Corrupt("what was held is damaged")
                return Followed(task, wish, trouble=trouble, damaged=True)
            if wish.promotion > held.promotion:
                held = self._folder.promote_again(task, held, wish.promotion)
        except OSError as error:
            return Followed(task, wish, trouble=error)
        return Followed(task, wish, held)

    # --- fetching -----------------------------------------------------------------------------

    def _ask_for(self, task: str, wish: PendingDownload) -> None:
        wish.url = ""
        reason = self._forbids(wish.manifest.size_bytes)
        if reason:
            _LOG.warning("%s of task %s waits: %s", wish.manifest.name, task, reason)
            wish.due_s = time.monotonic() + _LONGEST_PAUSE_S
            return
        wish.due_s = time.monotonic() + _OFFER_S
        self._ask(task, wish.manifest.sha256)

    def _fetch(self, task: str, wish: PendingDownload) -> None:
        wish.due_s = math.inf
        wish.cancelled = threading.Event()
        self._submit(lambda: self._download(task, wish))

    def _download(self, task: str, wish: PendingDownload) -> Followed:
        """Fetch a version and put it in its place; on the transfer thread."""
        manifest = wish.manifest
        try:
            path = self._folder.incoming(task, manifest.sha256)
            self._transfers.download(
                wish.url,
                path,
                sha256=manifest.sha256,
                size=manifest.size_bytes,
                cancel=wish.cancelled,
            )
            held = self._folder.adopt(task, wish.promotion, wish.document, manifest)
        except Cancelled:
            return Followed(task, wish)
        except (RengoError, OSError) as error:
            return Followed(task, wish, trouble=error)
        return Followed(task, wish, held)

    def take(self, ended: Followed) -> None:
        """Take the end of what was submitted."""
        task, wish = ended.task, ended.wish
        if ended.held is not None:
            self._take_held(task, wish, ended.held)
            return
        if ended.trouble is not None:
            _LOG.warning("%s of task %s: %s", wish.manifest.name, task, ended.trouble)
        if ended.damaged and task not in self._wishes:
            self._held[task] = None
            self._wishes[task] = wish
            self._ask_for(task, wish)
        elif self._wishes.get(task) is wish:
            self._go_on(task, wish, ended.trouble)

    def _take_held(self, task: str, wish: PendingDownload, held: HeldModel) -> None:
        known, promotion = self._held[task], max(held.promotion, wish.promotion)
        if known is None or promotion >= known.promotion:
            self._held[task] = replace(held, promotion=promotion)
        self._checked.add(task)
        if self._wishes.get(task) is wish:
            del self._wishes[task]
            _LOG.info("%s of task %s is held", wish.manifest.name, task)
            if wish.promotion > held.promotion:  # promoted again just now
                self._submit(lambda: self._keep(task, wish))

    def _go_on(self, task: str, wish: PendingDownload, trouble: Exception | None) -> None:
        if trouble is None:
            self._fetch(task, wish)  # behind the transfers that it stepped aside for
        elif isinstance(trouble, AccessDenied) and not wish.backoff.attempts:
            wish.backoff.next_s()  # counts: a second refusal waits
            self._ask_for(task, wish)  # its URL has expired
        else:
            wish.url = ""
            wish.due_s = time.monotonic() + wish.backoff.next_s()

    # --- the agent's turns --------------------------------------------------------------------

    def step_aside(self) -> None:
        """Let a transfer of a round go first."""
        for wish in self._wishes.values():
            wish.cancelled.set()

    stop = step_aside

    def left_s(self, now_s: float) -> float | None:
        """Return how long until ``look_at_clock`` has something to do, None for never."""
        due_s = min((wish.due_s for wish in self._wishes.values()), default=math.inf)
        return None if due_s == math.inf else max(0.0, due_s - now_s)

    def look_at_clock(self, now_s: float) -> None:
        """Ask again for what is overdue."""
        for task, wish in self._wishes.items():
            if wish.due_s <= now_s:
                self._ask_for(task, wish)

    # --- wishes -------------------------------------------------------------------------------

    def _wish(self, manifest: Manifest, said: ProductionDocument) -> None:
        self._drop_wish(said.task)
        wish = self._wishes[said.task] = self._new_wish(manifest, said)
        self._ask_for(said.task, wish)

    def _new_wish(self, manifest: Manifest, said: ProductionDocument) -> PendingDownload:
        return PendingDownload(said.promotion, manifest, said.manifest)

    def _drop_wish(self, task: str) -> None:
        wish = self._wishes.pop(task, None)
        if wish is not None:
            wish.cancelled.set()
