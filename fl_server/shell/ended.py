"""Runs that have ended: filed as history once they are idle, opened again for late messages.

Called on the owner's thread.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from fl_server.flows.flow import Flow
from fl_server.kinds.failed import FailedFlow
from fl_server.members.rules import AuditEvent
from fl_server.persistence.database import JournalUnusable
from fl_server.persistence.journal import DamagedRun
from fl_server.runs.record import EndedRun, RunRecord
from fl_server.runs.timers import Timers
from fl_server.shell.parts import OpenRuns, RunnerParts
from runtime.errors import InvalidTransition, RengoError

_LOG = logging.getLogger(__name__)
# flows of runs that have ended long ago, for late messages, which come in groups
_REOPENED_KEPT = 8


class EndedRuns:
    """Takes the runs that have ended from those that are open.

    Args:
        opened: the runner's; a run is removed there when it is filed.
        open_flow: returns a run's flow as its facts left it.
        is_listed: whether operators see a run among theirs.
    """

    def __init__(
        self,
        opened: OpenRuns,
        timers: Timers,
        parts: RunnerParts,
        open_flow: Callable[[RunRecord[Any]], Flow],
        is_listed: Callable[[RunRecord[Any]], bool],
    ) -> None:
        self._opened = opened
        self._timers = timers
        self._parts = parts
        self._open_flow = open_flow
        self._is_listed = is_listed
        self._filing: set[str] = set()
        self._reopened: OrderedDict[str, Flow] = OrderedDict()
        self._damaged: list[EndedRun] = []

    # --- late messages ------------------------------------------------------------------------

    def reopen(self, run_id: str) -> Flow | None:
        """Return the flow of a run that is history; None where its facts are not there or whole."""
        known = self._reopened.get(run_id)
        if known is not None or not self._parts.history.has_facts(run_id):
            return known
        try:
            flow = self._open_flow(self._parts.journal.record(run_id))
        except (InvalidTransition, JournalUnusable, DamagedRun) as error:
            _LOG.error("a late message about a run that cannot be opened: %s", error)
            return None
        self._reopened[run_id] = flow
        if len(self._reopened) > _REOPENED_KEPT:
            self.close(next(iter(self._reopened)))
        return flow

    def close(self, run_id: str) -> None:
        """Hold nothing in memory of a run that is history."""
        self._reopened.pop(run_id, None)
        self._parts.data.close_run(run_id)
        self._parts.journal.forget(run_id)

    # --- filing -------------------------------------------------------------------------------

    def file_when_idle(self, run_id: str) -> None:
        """Make a run history that has ended and has no timer, behind its work under way."""
        if self._is_idle(run_id) and run_id not in self._filing:
            self._filing.add(run_id)
            self._parts.data.start_task(
                lambda: None, lambda _: self._file(run_id), _unexpected, in_order=True
            )

    def _is_idle(self, run_id: str) -> bool:
        flow = self._opened.flows.get(run_id)
        if flow is None or isinstance(flow, FailedFlow):
            return False  # what stands in for a run is not the run: its facts may be whole
        return flow.ended and not self._timers.has(run_id)

    def _file(self, run_id: str) -> None:
        self._filing.discard(run_id)
        if not self._is_idle(run_id):
            return
        record, flow = self._opened.records[run_id], self._opened.flows[run_id]
        try:
            facts = self._parts.journal.facts(run_id, record.definition.flow)
            run = self._parts.reports.ended(record, flow, facts, listed=self._is_listed(record))
        except DamagedRun as error:
            _LOG.error("a run that has ended: %s", error)
            run = self._parts.reports.damaged(run_id, str(error))
        self._move(run)

    def file_damaged(self, run_id: str, error: RengoError) -> None:
        """Fail a run whose rows are not as they were written; all others go on."""
        _LOG.error("run %s fails: %s", run_id, error)
        run = self._parts.reports.damaged(run_id, str(error))
        self._parts.note(AuditEvent("server", "run failed", run_id, {"why": str(error)[:2000]}))
        self._move(run)
        self._damaged.append(run)

    def take_damaged(self) -> list[EndedRun]:
        """Return the damaged runs that were found since the last call."""
        found, self._damaged = self._damaged, []
        return found

    def _move(self, run: EndedRun) -> None:
        self._parts.history.file(run, time.time())
        self._opened.remove(run.run_id)
        self.close(run.run_id)


def _unexpected(error: RengoError) -> None:
    _LOG.error("nothing that was to be done has failed: %s", error)
