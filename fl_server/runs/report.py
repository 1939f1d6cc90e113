"""What a run did, told from its journal: for ``rengo runs``, JSON documents and the web. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from broker.wire.messages import RunDocument
from fl_server.rounds.events import (
    EvaluationRecorded,
    OrderDeclined,
    Plan,
    RoundAbandoned,
    RoundClosed,
    RoundCommitted,
    RoundStarted,
    UpdateAccepted,
    UpdateRefused,
    UpdateWithdrawn,
)
from fl_server.rounds.ledger import Ledger
from fl_server.rounds.workload import OrderWork, measured
from fl_server.runs.record import FactRecord, RunRecord

MAX_ROUNDS_SHOWN = 200
_MAX_ROUND_TIMES = 1000
_MAX_DEVICES_SHOWN = 500
_MAX_NAMES_SHOWN = 100
_MAX_REASON_CHARS = 300
_HISTORY_BYTES = 110_000
_ROW_BYTES = 300


@dataclass
class _DeviceReport:
    rounds: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    peak_rss_bytes: int = 0
    steps: int = 0
    full_steps: int = 0
    step_s: float = 0.0

    def take(self, usage: dict[str, float]) -> None:
        self.bytes_up += int(usage.get("bytes_up", 0))
        self.bytes_down += int(usage.get("bytes_down", 0))
        peak = int(usage.get("peak_rss_bytes", 0))
        self.peak_rss_bytes = max(self.peak_rss_bytes, peak)

    def trained(self, usage: dict[str, float]) -> None:
        """Take what it did in its latest round."""
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
    outcome: str = "collecting"
    seconds: float | None = None
    included: Sequence[str] = ()
    work: Mapping[str, OrderWork] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    reason: str = ""

    def end(self, outcome: str, at: float, reason: str = "") -> None:
        self.outcome, self.reason = outcome, reason
        self.seconds = at - self.started_at


def summary(record: RunRecord[Plan], ledger: Ledger) -> dict[str, Any]:
    """Return a run in one row."""
    version = _measured_version(ledger)
    return {
        "run_id": record.run_id,
        "task": record.definition.task,
        "algorithm": record.definition.algorithm.name,
        "status": ledger.status,
        "reason": ledger.reason,
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
        "accuracy": ledger.metric(version, "accuracy"),
        "loss": ledger.metric(version, "loss"),
        "submitted_at": record.at,
    }


def summary_of_document(record: RunRecord[Any], document: RunDocument | None) -> dict[str, Any]:
    """Return a run of any kind in one row, as its document says."""
    shown = {} if document is None else document.model_dump()
    return {
        "run_id": record.run_id,
        "task": record.definition.task,
        "algorithm": record.definition.algorithm.name,
        "rounds": record.definition.rounds,
        "submitted_at": record.at,
        **{name: shown.get(name) for name in ("round", "attempt", "accuracy", "loss")},
        **{name: shown.get(name, "") for name in ("status", "reason", "phase")},
    }


def report(record: RunRecord[Plan], ledger: Ledger, facts: Iterable[FactRecord]) -> dict[str, Any]:
    """Return a run with its rounds, devices, refusals, bytes and metrics.

    It fits into one message: of long runs the latest rounds are shown, of many devices the first.

    Units: times are Unix seconds or seconds, sizes bytes.
    """
    rounds: list[_RoundReport] = []
    devices: dict[str, _DeviceReport] = defaultdict(_DeviceReport)
    last_at = record.at
    for row in facts:
        last_at = row.at
        _take(row, rounds, devices)
    committed = [each for each in rounds if each.outcome == "committed"]
    return summary(record, ledger) | {
        "seed": record.plan.seed,
        "model_key": ledger.model.key,
        "model_sha256": ledger.model.sha256,
        "wall_s": last_at - record.at,
        "round_s": [round(each.seconds or 0.0, 4) for each in committed[-_MAX_ROUND_TIMES:]],
        "bytes_up": sum(device.bytes_up for device in devices.values()),
        "bytes_down": sum(device.bytes_down for device in devices.values()),
        "history": _history(rounds, ledger),
        "devices": [
            {"id": device_id, **vars(device)}
            for device_id, device in sorted(devices.items())[:_MAX_DEVICES_SHOWN]
        ],
    }


def _take(row: FactRecord, rounds: list[_RoundReport], devices: dict[str, _DeviceReport]) -> None:
    fact = row.fact
    match fact:
        case RoundStarted():
            rounds.append(
                _RoundReport(fact.round, fact.attempt, row.at, fact.cohort, work=fact.work)
            )
        case UpdateAccepted():
            devices[fact.device_id].take(fact.update.usage)
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
        case EvaluationRecorded():
            devices[fact.device_id].take(fact.usage)


def _history(rounds: Sequence[_RoundReport], ledger: Ledger) -> list[dict[str, Any]]:
    """Return the latest rounds, oldest first, as many as fit."""
    rows: list[dict[str, Any]] = []
    left = _HISTORY_BYTES
    for entry in reversed(rounds[-MAX_ROUNDS_SHOWN:]):
        row = _history_row(entry, ledger)
        left -= _ROW_BYTES + sum(len(name) + 3 for name in row["included"])
        left -= sum(len(name) + 10 for name in row["ordered_steps"])
        left -= sum(len(name) + 4 * len(reason) + 6 for name, reason in row["refused"].items())
        if rows and left < 0:
            break
        rows.append(row)
    return rows[::-1]


def _history_row(entry: _RoundReport, ledger: Ledger) -> dict[str, Any]:
    refused = list(entry.refused.items())[:_MAX_NAMES_SHOWN]
    fitted = list(entry.work.items())[:_MAX_NAMES_SHOWN]
    committed = entry.outcome == "committed"
    return {
        "round": entry.round,
        "attempt": entry.attempt,
        "outcome": entry.outcome,
        "reason": entry.reason[:_MAX_REASON_CHARS],
        "seconds": entry.seconds,
        "invited": len(entry.cohort),
        "updates": len(entry.included),
        "included": list(entry.included)[:_MAX_NAMES_SHOWN],
        "refused": {name: reason[:_MAX_REASON_CHARS] for name, reason in refused},
        "ordered_steps": {name: work.max_steps for name, work in fitted},
        "accuracy": ledger.metric(entry.round, "accuracy") if committed else None,
        "loss": ledger.metric(entry.round, "loss") if committed else None,
    }


def _measured_version(ledger: Ledger) -> int:
    """Return the latest version that somebody measured, else the latest."""
    return max(ledger.evaluations, default=ledger.model.version)
