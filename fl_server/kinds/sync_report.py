"""What a run in rounds reports to operators: the fold of its facts, beside its ledger. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fl_server.flows.report import DeviceReport, FlowReport, RecordedFact, RoundReport
from fl_server.rounds.facts import (
    EvaluationRecorded,
    OrderDeclined,
    RequestFailed,
    RoundAbandoned,
    RoundClosed,
    RoundCommitted,
    RoundStarted,
    RunFailed,
    RunStopped,
    RunStoppedEarly,
    UpdateAccepted,
    UpdateRefused,
    UpdateWithdrawn,
)
from fl_server.rounds.ledger import Ledger
from fl_server.rounds.workload import measured


def report_of(facts: Iterable[RecordedFact], ledger: Ledger, headline: str) -> FlowReport:
    """Return the rounds of a run with their metrics, and what its devices did.

    Args:
        headline: the metric that runs of its task are compared by.
    """
    told = FlowReport(model_key=ledger.model.key, model_sha256=ledger.model.sha256)
    for row in facts:
        _add(row, told)
    for entry in told.rounds:
        if entry.outcome == "committed":
            entry.accuracy = ledger.metric(entry.round, "accuracy")
            entry.loss = ledger.metric(entry.round, "loss")
            entry.measured = ledger.metric(entry.round, headline)
            declined = ledger.not_evaluated.get(entry.round, {})
            entry.not_evaluated = {name: fact.reason for name, fact in declined.items()}
    return told


def _add(row: RecordedFact, told: FlowReport) -> None:
    fact, rounds, devices = row.fact, told.rounds, told.devices
    match fact:
        case RoundStarted():
            rounds.append(
                RoundReport(
                    fact.round,
                    fact.attempt,
                    row.at,
                    fact.cohort,
                    ordered_steps={name: work.max_steps for name, work in fact.work.items()},
                    widths={name: each.width for name, each in fact.work.items() if each.width < 1},
                )
            )
        case UpdateAccepted():
            devices[fact.device_id].add(fact.update.usage)
            _set_steps(devices[fact.device_id], fact.update.usage)
            devices[fact.device_id].width = rounds[-1].widths.get(fact.device_id, 1.0)
        case UpdateRefused() | OrderDeclined() | UpdateWithdrawn():
            rounds[-1].refused[fact.device_id] = fact.reason
        case RoundClosed():
            rounds[-1].included = fact.included
        case RoundCommitted():
            rounds[-1].end("committed", row.at)
            for device_id in rounds[-1].included:
                devices[device_id].rounds += 1
        case RoundAbandoned() | RequestFailed():
            rounds[-1].end("abandoned", row.at, fact.reason)
        case RunFailed() | RunStopped() | RunStoppedEarly():
            if rounds and rounds[-1].outcome == "collecting":
                rounds[-1].end("abandoned", row.at, fact.reason)
        case EvaluationRecorded():
            devices[fact.device_id].add(fact.usage)


def _set_steps(device: DeviceReport, usage: Mapping[str, float]) -> None:
    """Set what a device did in its latest round."""
    speed = measured(usage)
    if speed is not None:
        device.steps, device.full_steps = int(usage["steps"]), speed.full_steps
        device.step_s = speed.step_s
