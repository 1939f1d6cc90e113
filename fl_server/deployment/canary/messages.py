"""What is said of a canary: to its devices in messages, to an operator in plain data. Pure."""

from __future__ import annotations

from typing import Any

from broker.wire.messages import ModelRef, Order, Receipt, RunDocument
from fl_server.deployment.canary.events import ATTEMPT_OF, ROUND, CanaryPlan, Side
from fl_server.deployment.canary.state import CanaryState, lower_is_better, measured_pairs
from fl_server.rounds.events import SendReceipt

_LISTED_DEVICES = 200


def order_of(plan: CanaryPlan, side: Side, epoch: int, url: str, time_left_s: float) -> Order:
    """Return the order to evaluate one of the two versions, which lies at ``url``."""
    contender = plan.contender(side)
    return Order(
        epoch=epoch,
        action="evaluate",
        run_id=plan.canary_id,
        round=ROUND,
        attempt=ATTEMPT_OF[side],
        task=plan.task,
        algorithm=plan.algorithm,
        algorithm_settings=plan.algorithm_settings,
        training=plan.training,
        seed=plan.seed,
        model=ModelRef(
            url=url,
            key=contender.key,
            sha256=contender.sha256,
            size_bytes=contender.size_bytes,
        ),
        upload=None,
        time_left_s=time_left_s,
    )


def receipt_of(plan: CanaryPlan, command: SendReceipt) -> Receipt:
    """Return the last word on a result."""
    return Receipt(
        action=command.action,
        run_id=plan.canary_id,
        round=command.round,
        attempt=command.attempt,
        status=command.status,
        reason=command.reason,
    )


def closing_of(plan: CanaryPlan, epoch: int) -> RunDocument:
    """Return what ends the canary's jobs on its devices; not to be retained, it is no run."""
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
        "lower_is_better": lower_is_better(plan.metric),
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
        "reason": "" if judged is None else judged.reason,
        "problem": state.problem,
    }
