"""A canary's orders and closing document for devices, and its state for operators. Pure."""

from __future__ import annotations

from typing import Any

from broker.wire.messages import RunDocument
from fl_server.canary.events import ATTEMPT_OF, DEADLINE, ROUND, CanaryPlan, OrderSide
from fl_server.canary.state import CanaryState, is_lower_better, measured_pairs
from fl_server.flows.commands import BundleFile, IssueOrder, ModelFile, TaskSettings

_LISTED_DEVICES = 200
# the store's words for an error may be long
_REASON_CHARS = 2000


def order_of(plan: CanaryPlan, command: OrderSide) -> IssueOrder:
    """Return the order to evaluate one of the two versions."""
    contender, bundle = plan.contender(command.side), plan.bundle
    return IssueOrder(
        command.device_id,
        "evaluate",
        ROUND,
        ATTEMPT_OF[command.side],
        TaskSettings(plan.task, plan.algorithm, plan.algorithm_settings, plan.training, plan.seed),
        ModelFile(contender.key, contender.sha256, contender.size_bytes),
        bundle=None if bundle is None else BundleFile(bundle.sha256, bundle.size_bytes),
        timer=DEADLINE,
        time_s=plan.deadline_s,
    )


def closing_of(plan: CanaryPlan, epoch: int) -> RunDocument:
    """Return the document that ends the canary's jobs on its devices."""
    return RunDocument(
        run_id=plan.canary_id,
        task=plan.task,
        algorithm=plan.algorithm,
        status="completed",
        round=ROUND,
        attempt=max(ATTEMPT_OF.values()),
        rounds=ROUND,
        epoch=epoch,
        phase="ended",
        deadline_s=plan.deadline_s,
        cohort=[],
        answered=[],
        model_sha256=plan.candidate.sha256,
        accuracy=None,
        loss=None,
    )


def shown(plan: CanaryPlan, state: CanaryState, time_left_s: float) -> dict[str, Any]:
    """Return how a canary stands."""
    judged = state.judged
    return {
        "canary_id": plan.canary_id,
        "task": plan.task,
        "candidate": plan.candidate.name,
        "production": plan.production.name,
        "metric": plan.metric,
        "lower_is_better": is_lower_better(plan),
        "max_drop": plan.max_drop,
        "deadline_s": plan.deadline_s,
        "measured_by": plan.measured_by,
        "cohort": list(plan.cohort[:_LISTED_DEVICES]),
        "cohort_size": len(plan.cohort),
        "quorum": plan.quorum,
        "state": state.phase,
        "pairs": len(measured_pairs(plan, state)),
        "time_left_s": time_left_s if judged is None else 0.0,
        "candidate_mean": None if judged is None else judged.candidate_mean,
        "production_mean": None if judged is None else judged.production_mean,
        "verdict": "" if judged is None else judged.verdict,
        "reason": "" if judged is None else judged.reason[:_REASON_CHARS],
        "problem": state.problem[:_REASON_CHARS],
    }
