"""What a run did, by its journal. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from broker.wire.messages import DeviceInfo, RunDocument
from fl_server.flows.flow import Flow
from fl_server.kinds.sync import SyncFlow
from fl_server.operations.results.runs import RoundRow, RunDevice, RunReport, RunSummary
from fl_server.rounds.facts import (
    EvaluationRecorded,
    OrderDeclined,
    RoundAbandoned,
    RoundClosed,
    RoundCommitted,
    RoundStarted,
    RunFailed,
    RunStopped,
    UpdateAccepted,
    UpdateRefused,
    UpdateWithdrawn,
)
from fl_server.rounds.ledger import Ledger
from fl_server.rounds.plan import Plan
from fl_server.rounds.workload import OrderWork, measured
from fl_server.runs.record import FactRecord, RunRecord
from runtime.bounds import is_plausible, total

_REASON_CHARS = 2000


@dataclass
class _DeviceReport:
    rounds: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    peak_rss_bytes: int = 0
    steps: int = 0
    full_steps: int = 0
    step_s: float = 0.0

    def add(self, usage: dict[str, float]) -> None:
        self.bytes_up = total((self.bytes_up, int(usage.get("bytes_up", 0))))
        self.bytes_down = total((self.bytes_down, int(usage.get("bytes_down", 0))))
        peak = int(usage.get("peak_rss_bytes", 0))
        self.peak_rss_bytes = max(self.peak_rss_bytes, peak)

    def trained(self, usage: dict[str, float]) -> None:
        """Set what it did in its latest round."""
        speed = measured(usage)
        if speed is not None:
            self.steps, self.full_steps = int(usage["steps"]), speed.full_steps
            self.step_s = speed.step_s


@dataclass
class _RoundReport:
    round: int
    attempt: int
    started_at: float
    cohort: Sequence[str]
    outcome: Literal["collecting", "committed", "abandoned"] = "collecting"
    seconds: float | None = None
    included: Sequence[str] = ()
    work: Mapping[str, OrderWork] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    reason: str = ""

    def end(self, outcome: Literal["committed", "abandoned"], at: float, reason: str = "") -> None:
        self.outcome, self.reason = outcome, reason
        self.seconds = at - self.started_at


def summary(record: RunRecord[Plan], ledger: Ledger) -> RunSummary:
    """Return a run in one row."""
    return RunSummary(**_summary(record, ledger))


def _summary(record: RunRecord[Plan], ledger: Ledger) -> dict[str, Any]:
    version = _measured_version(ledger)
    return {
        "run_id": record.run_id,
        "task": record.definition.task,
        "algorithm": record.definition.algorithm.name,
        "status": ledger.status,
        "reason": ledger.explanation[:_REASON_CHARS],
        "phase": ledger.phase,
        "round": ledger.round,
        "attempt": ledger.attempt,
        "rounds": record.plan.rounds,
        "cohort_size": record.plan.cohort_size,
        "quorum": record.plan.quorum,
        "fit": record.definition.cohort.fit,
        "bundled": record.definition.bundled,
        "evaluate_on": record.plan.evaluate_on,
        "evaluate_every": record.plan.evaluate_every,
        "rounds_completed": ledger.model.version,
        "accuracy": finite(ledger.metric(version, "accuracy")),
        "loss": finite(ledger.metric(version, "loss")),
        "headline": record.definition.evaluation.headline,
        "measured": finite(ledger.metric(version, record.definition.evaluation.headline)),
        "submitted_at": record.at,
    }


def summary_of(record: RunRecord[Any], flow: Flow, document: RunDocument | None) -> RunSummary:
    """Return a run of any kind in one row.

    Args:
        document: the flow's, None where it has none yet.
    """
    if isinstance(flow, SyncFlow):
        return summary(flow.record, flow.machine.ledger)
    return RunSummary(**_summary_of_document(record, document))


def _summary_of_document(record: RunRecord[Any], document: RunDocument | None) -> dict[str, Any]:
    definition = record.definition
    known = {} if document is None else document.model_dump()
    status = known.get("status", "waiting")
    return {
        "run_id": record.run_id,
        "task": definition.task,
        "algorithm": definition.algorithm.name,
        "status": status,
        "reason": known.get("reason", ""),
        "phase": known.get("phase", "gathering"),
        "round": known.get("round", 0),
        "attempt": known.get("attempt", 0),
        "rounds": definition.rounds,
        "cohort_size": len(known.get("cohort", ())),
        "quorum": 0,
        "fit": definition.cohort.fit,
        "bundled": definition.bundled,
        "evaluate_on": "none",
        "evaluate_every": definition.evaluation.every,
        "rounds_completed": definition.rounds if status == "completed" else 0,
        "accuracy": finite(known.get("accuracy")),
        "loss": finite(known.get("loss")),
        "measured": finite(known.get("accuracy")),
        "submitted_at": record.at,
    }


def report_of_document(
    record: RunRecord[Any], document: RunDocument | None, facts: Sequence[FactRecord]
) -> RunReport:
    """Return a run of any kind, as far as its document says."""
    return RunReport(
        **_summary_of_document(record, document),
        seed=record.definition.seed,
        model_key=record.initial.key,
        model_sha256=record.initial.sha256,
        wall_s=facts[-1].at - record.at if facts else 0.0,
        round_s=[],
        bytes_up=0,
        bytes_down=0,
        history=[],
        devices=[],
    )


def report(
    record: RunRecord[Plan],
    ledger: Ledger,
    facts: Iterable[FactRecord],
    infos: Mapping[str, DeviceInfo] | None = None,
) -> RunReport:
    """Return a run with its rounds, devices, refusals, bytes and metrics.

    Args:
        infos: what devices say of themselves, by id.
    """
    rounds: list[_RoundReport] = []
    devices: dict[str, _DeviceReport] = defaultdict(_DeviceReport)
    last_at = record.at
    for row in facts:
        last_at = row.at
        _add(row, rounds, devices)
    headline = record.definition.evaluation.headline
    return RunReport(
        **_summary(record, ledger),
        seed=record.plan.seed,
        model_key=ledger.model.key,
        model_sha256=ledger.model.sha256,
        wall_s=last_at - record.at,
        round_s=[round(each.seconds or 0.0, 4) for each in rounds if each.outcome == "committed"],
        bytes_up=total(device.bytes_up for device in devices.values()),
        bytes_down=total(device.bytes_down for device in devices.values()),
        history=[_history_row(entry, ledger, headline) for entry in rounds],
        devices=[
            described(RunDevice(id=device_id, **vars(device)), infos or {})
            for device_id, device in sorted(devices.items())
        ],
    )


def described(device: RunDevice, infos: Mapping[str, DeviceInfo]) -> RunDevice:
    """Return a device with what it says of itself, where it was away before."""
    info = infos.get(device.id)
    if info is None or device.engine:
        return device
    return device.model_copy(update={"profile": info.profile[:32], "engine": info.engine[:32]})


def _add(row: FactRecord, rounds: list[_RoundReport], devices: dict[str, _DeviceReport]) -> None:
    fact = row.fact
    match fact:
        case RoundStarted():
            rounds.append(
                _RoundReport(fact.round, fact.attempt, row.at, fact.cohort, work=fact.work)
            )
        case UpdateAccepted():
            devices[fact.device_id].add(fact.update.usage)
            devices[fact.device_id].trained(fact.update.usage)
        case UpdateRefused() | OrderDeclined() | UpdateWithdrawn():
            rounds[-1].refused[fact.device_id] = fact.reason
        case RoundClosed():
            rounds[-1].included = fact.included
        case RoundCommitted():
            rounds[-1].end("committed", row.at)
            for device_id in rounds[-1].included:
                devices[device_id].rounds += 1
        case RoundAbandoned():
            rounds[-1].end("abandoned", row.at, fact.reason)
        case RunFailed() | RunStopped():
            if rounds and rounds[-1].outcome == "collecting":
                rounds[-1].end("abandoned", row.at, fact.reason)
        case EvaluationRecorded():
            devices[fact.device_id].add(fact.usage)


def _history_row(entry: _RoundReport, ledger: Ledger, headline: str) -> RoundRow:
    committed = entry.outcome == "committed"
    return RoundRow(
        round=entry.round,
        attempt=entry.attempt,
        outcome=entry.outcome,
        reason=entry.reason[:_REASON_CHARS],
        seconds=entry.seconds,
        invited=len(entry.cohort),
        updates=len(entry.included),
        included=list(entry.included),
        refused={name: reason[:_REASON_CHARS] for name, reason in entry.refused.items()},
        not_evaluated=_not_evaluated(entry, ledger),
        ordered_steps={name: work.max_steps for name, work in entry.work.items()},
        accuracy=finite(ledger.metric(entry.round, "accuracy")) if committed else None,
        loss=finite(ledger.metric(entry.round, "loss")) if committed else None,
        measured=finite(ledger.metric(entry.round, headline)) if committed else None,
    )


def _not_evaluated(entry: _RoundReport, ledger: Ledger) -> dict[str, str]:
    if entry.outcome != "committed":
        return {}
    declined = ledger.not_evaluated.get(entry.round, {})
    return {name: fact.reason[:_REASON_CHARS] for name, fact in declined.items()}


def _measured_version(ledger: Ledger) -> int:
    """Return the latest version that somebody measured, else the latest."""
    return max(ledger.evaluations, default=ledger.model.version)


def finite(value: float | None) -> float | None:
    """Return a metric, None where it is out of bounds."""
    return value if value is not None and is_plausible(value) else None
