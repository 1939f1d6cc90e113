"""What a run did, by its journal. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from broker.wire.messages import DeviceInfo, RunDocument
from fl_server.flows.flow import Flow
from fl_server.kinds.sync import SyncFlow
from fl_server.operations.handlers.run_summary import (
    finite,
    of_experiment,
    report,
    summary,
)
from fl_server.operations.results.runs import (
    RunReport,
    RunSummary,
)
from fl_server.runs.record import FactRecord, RunRecord


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
        **of_experiment(record.definition),
    }


def report_of(
    record: RunRecord[Any],
    flow: Flow,
    facts: Sequence[FactRecord],
    document: RunDocument | None,
    infos: Mapping[str, DeviceInfo],
) -> RunReport:
    """Return a run of any kind, from its flow and its journalled facts."""
    wall_s = facts[-1].at - record.at if facts else 0.0
    row = summary_of(record, flow, document)
    return report(record, row, flow.report(facts), wall_s, infos)
