"""Keeps the journal small and safe while the server runs. Called on the owner's thread.

What it reached is marked beside it within a second, its log is moved into the main file every few
minutes, and what is older than the retention is removed, a little at a time.
"""

from __future__ import annotations

import logging
import math
import time

from fl_server.members.store import MemberRegistry
from fl_server.persistence.database import JournalError, JournalUnusable
from fl_server.persistence.history import RunHistory
from fl_server.persistence.journal import Journal
from fl_server.persistence.mark import Mark, MarkFile
from fl_server.settings import JournalRetention

_LOG = logging.getLogger(__name__)
_MARK_AFTER_S = 1.0
_CHECKPOINT_EVERY_S = 300.0
_REMOVE_EVERY_S = 3600.0
_REMOVED_AT_ONCE = 10
_DAY_S = 86_400.0


class JournalUpkeep:
    """The upkeep of one server's journal.

    Args:
        mark: beside the journal; None where the database is somebody else's to guard.
    """

    def __init__(
        self,
        journal: Journal,
        registry: MemberRegistry,
        history: RunHistory,
        retention: JournalRetention,
        mark: MarkFile | None,
    ) -> None:
        self._journal = journal
        self._database = journal.database
        self._registry = registry
        self._history = history
        self._retention = retention
        self._mark = mark
        self._seen = -1
        self._mark_s = self._checkpoint_s = math.inf
        self._remove_s = 0.0

    def require_latest(self) -> None:
        """Compare the journal with its mark, before anything is written to it.

        Raises:
            JournalUnusable: it is older than it was, or its audit log is another.
        """
        if self._mark is None:
            return
        mark, name, epoch = self._mark.read(), self._database.name, self._journal.epoch()
        way = (
            f"put its latest backup back; to go on with it as it is, remove {self._mark.path}: "
            "what it lacks (devices, runs, acts of operators) is lost then"
        )
        if epoch < mark.epoch:
            raise JournalUnusable(
                f"journal {name} is older than it was: its server has started {epoch} times, and "
                f"{mark.epoch} are marked; {way}"
            )
        digest = self._registry.audit_digest(mark.audit_number)
        if mark.audit_number and digest != mark.audit_digest:
            what = "is missing" if digest is None else "is another"
            raise JournalUnusable(
                f"journal {name} is not as it was: entry {mark.audit_number} of its audit log "
                f"{what}; {way}"
            )

    def begin(self) -> None:
        """Mark the server's epoch, and begin with what was written in the main file."""
        self._write_mark()
        self._database.checkpoint()

    def due_s(self) -> float:
        """Return when ``handle_due`` must be called, by the monotonic clock."""
        self._look()
        return min(self._mark_s, self._checkpoint_s, self._remove_s)

    def handle_due(self) -> None:
        """Do what is due."""
        self._look()
        now_s = time.monotonic()
        if now_s < min(self._mark_s, self._checkpoint_s, self._remove_s):
            return
        if now_s >= self._mark_s:
            self._write_mark()
        if now_s >= self._checkpoint_s:
            self._checkpoint_s = math.inf
            self._database.checkpoint()
        if now_s >= self._remove_s:
            more = self._remove_old(time.time())
            self._remove_s = now_s + (1.0 if more else _REMOVE_EVERY_S)
        self._seen = self._database.transactions  # these were its own

    def end(self) -> None:
        """Mark what the journal has reached; what is in its way may have ended the server."""
        try:
            self._write_mark()
        except (JournalError, OSError) as error:
            _LOG.error("what the journal has reached cannot be marked: %s", error)

    def _look(self) -> None:
        """Have changes marked soon, and moved into the main file later."""
        if self._seen == self._database.transactions:
            return
        self._seen = self._database.transactions
        now_s = time.monotonic()
        self._mark_s = min(self._mark_s, now_s + _MARK_AFTER_S)
        self._checkpoint_s = min(self._checkpoint_s, now_s + _CHECKPOINT_EVERY_S)

    def _write_mark(self) -> None:
        self._mark_s = math.inf
        if self._mark is not None:
            number, digest = self._registry.latest_audit()
            self._mark.write(Mark(self._journal.epoch(), number, digest))

    def _remove_old(self, now: float) -> bool:
        """Remove some of what is too old; return whether there may be more."""
        retention = self._retention
        before = now - retention.facts_days * _DAY_S
        removed = self._history.compact(before, _REMOVED_AT_ONCE)
        self._registry.remove_audit(now - retention.audit_days * _DAY_S)
        return removed == _REMOVED_AT_ONCE
