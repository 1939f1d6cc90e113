"""What is kept of a run that has ended: all that operators and later runs may ask for."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from broker.wire.messages import DeviceInfo, RunDocument
from fl_server.flows.flow import Flow
from fl_server.kinds.canary import CanaryFlow
from fl_server.kinds.sync import SyncFlow, steps_digest
from fl_server.members.presence import PresenceTable
from fl_server.operations.handlers import run_report, run_summary
from fl_server.operations.results.runs import RunReport, RunSummary
from fl_server.runs.record import EndedRun, FactRecord, RunRecord

_NO_SHA256 = "0" * 64


class EndedRunReports:
    """Makes what is kept of a run. The owner's thread calls it.

    Args:
        epoch: the server's.
    """

    def __init__(self, presence: PresenceTable, epoch: int) -> None:
        self._presence = presence
        self._epoch = epoch

    def ended(
        self, record: RunRecord[Any], flow: Flow, facts: Sequence[FactRecord], *, listed: bool
    ) -> EndedRun:
        """Return what is kept of a run."""
        document = flow.document(self._epoch)
        speeds: dict[str, Any] = {}
        if isinstance(flow, CanaryFlow):
            told = flow.shown(0.0)
        else:
            infos = infos_of(self._presence)
            told = run_report.report_of(record, flow, facts, document, infos).document()
        if isinstance(flow, SyncFlow):
            ledger = flow.machine.ledger
            speeds = {
                "steps": steps_digest(record.definition),
                "devices": {name: asdict(speed) for name, speed in ledger.speeds.items()},
            }
        summary = run_report.summary_of(record, flow, document).document()
        shown = None if document is None else document.model_dump(mode="json")
        return EndedRun(record.run_id, record.definition.task, listed, summary, shown, speeds, told)

    def damaged(self, run_id: str, reason: str) -> EndedRun:
        """Return what is kept of a run that failed, since its rows are damaged."""
        task = run_id.rpartition("-")[0] or run_id
        report = _failed(run_id, task, reason)
        document = RunDocument(
            run_id=run_id,
            task=task,
            algorithm=report.algorithm,
            status="failed",
            reason=report.reason,
            round=1,
            attempt=1,
            rounds=1,
            epoch=self._epoch,
            phase="ended",
            deadline_s=1.0,
            cohort=[],
            answered=[],
            model_sha256="",
            accuracy=None,
            loss=None,
        )
        told = report.document()
        summary = {name: told[name] for name in RunSummary.model_fields}
        shown = document.model_dump(mode="json")
        return EndedRun(run_id, task, True, summary, shown, {}, told)


def infos_of(presence: PresenceTable) -> dict[str, DeviceInfo]:
    """Return what devices say of themselves, by id."""
    return {name: each.info for name, each in presence.devices.items() if each.info is not None}


def report_of(kept: Mapping[str, Any], infos: Mapping[str, DeviceInfo]) -> RunReport:
    """Return a kept report; devices that were away when it was written are described by now."""
    report = RunReport.read(kept)
    return report.model_copy(
        update={"devices": [run_summary.described(each, infos) for each in report.devices]}
    )


def unreadable(run_id: str, reason: str) -> RunSummary:
    """Return the row of a run whose kept summary cannot be read."""
    return RunSummary.read(_failed(run_id, run_id, reason).document())


def _failed(run_id: str, task: str, reason: str) -> RunReport:
    return RunReport(
        run_id=run_id,
        task=task,
        algorithm="unknown",
        status="failed",
        reason=reason[:2000],
        phase="ended",
        round=0,
        attempt=0,
        rounds=0,
        cohort_size=0,
        quorum=0,
        fit="off",
        bundled=False,
        evaluate_on="none",
        evaluate_every=0,
        rounds_completed=0,
        accuracy=None,
        loss=None,
        submitted_at=time.time(),
        seed=0,
        model_key="unknown",
        model_sha256=_NO_SHA256,
        wall_s=0.0,
        round_s=[],
        bytes_up=0,
        bytes_down=0,
        history=[],
        devices=[],
    )
