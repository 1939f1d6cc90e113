"""A run in one row, and with all that it reports: by its ledger, whatever coordinated it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from broker.wire.messages import DeviceInfo
from fl_server.flows.report import FlowReport, MetricSpread, RoundReport
from fl_server.operations.results.runs import (
    DeviceSpread,
    RoundRow,
    RunDevice,
    RunReport,
    RunSummary,
)
from fl_server.rounds.ledger import Ledger
from fl_server.rounds.plan import Plan
from fl_server.runs.definition import RunDefinition
from fl_server.runs.record import RunRecord
from runtime.bounds import is_plausible, total

REASON_CHARS = 2000


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
        "reason": ledger.explanation[:REASON_CHARS],
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
        "best_version": None if ledger.best is None else ledger.best[0],
        "best_value": None if ledger.best is None else finite(ledger.best[1]),
        "submitted_at": record.at,
        **of_experiment(record.definition),
    }


def of_experiment(definition: RunDefinition) -> dict[str, Any]:
    """Return what a row says of the experiment that a run belongs to."""
    return {
        "headline_goal": definition.goal_of(definition.evaluation.headline),
        "group": definition.group,
        "target": definition.target,
        "where": definition.where,
        "variant": definition.variant,
    }


def report(
    record: RunRecord[Any],
    row: RunSummary,
    told: FlowReport,
    wall_s: float,
    infos: Mapping[str, DeviceInfo] | None = None,
) -> RunReport:
    """Return a run with its rounds, devices, refusals, bytes and metrics.

    Args:
        row: the run in one row.
        told: what its flow reports.
        wall_s: from its beginning to its latest fact.
        infos: what devices say of themselves, by id.
    """
    devices = told.devices.values()
    return RunReport(
        **dict(row),
        seed=record.definition.seed,
        model_key=told.model_key or record.initial.key,
        model_sha256=told.model_sha256 or record.initial.sha256,
        wall_s=wall_s,
        round_s=[
            round(each.seconds or 0.0, 4) for each in told.rounds if each.outcome == "committed"
        ],
        bytes_up=total(device.bytes_up for device in devices),
        bytes_down=total(device.bytes_down for device in devices),
        history=[_history_row(entry) for entry in told.rounds],
        devices=[
            described(RunDevice(id=device_id, **vars(device)), infos or {})
            for device_id, device in sorted(told.devices.items())
        ],
        spread=_spread(told.spread),
    )


def described(device: RunDevice, infos: Mapping[str, DeviceInfo]) -> RunDevice:
    """Return a device with what it says of itself, where it was away before."""
    info = infos.get(device.id)
    if info is None or device.engine:
        return device
    return device.model_copy(update={"profile": info.profile[:32], "engine": info.engine[:32]})


def _spread(spread: MetricSpread | None) -> DeviceSpread | None:
    if spread is None:
        return None
    return DeviceSpread(**{**vars(spread), "variance": finite(spread.variance)})


def _history_row(entry: RoundReport) -> RoundRow:
    return RoundRow(
        round=entry.round,
        attempt=entry.attempt,
        outcome=entry.outcome,
        reason=entry.reason[:REASON_CHARS],
        seconds=entry.seconds,
        invited=len(entry.cohort),
        updates=len(entry.included),
        included=list(entry.included),
        refused={name: reason[:REASON_CHARS] for name, reason in entry.refused.items()},
        not_evaluated={name: reason[:REASON_CHARS] for name, reason in entry.not_evaluated.items()},
        ordered_steps=dict(entry.ordered_steps),
        accuracy=finite(entry.accuracy),
        loss=finite(entry.loss),
        measured=finite(entry.measured),
    )


def _measured_version(ledger: Ledger) -> int:
    """Return the latest version that somebody measured, else the latest."""
    return max(ledger.evaluations, default=ledger.model.version)


def finite(value: float | None) -> float | None:
    """Return a metric, None where it is out of bounds."""
    return value if value is not None and is_plausible(value) else None
