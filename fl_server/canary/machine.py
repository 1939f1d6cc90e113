"""The canary machine: a candidate against production on the same devices, sans-IO.

``handle(event)`` returns the facts that it decided and the commands that follow; the shell journals
the facts before it carries out the commands. The state is the fold of the facts, plus who is
online, which devices publish again. After a crash: build a machine of the facts, then ``resume()``.

Each device of the cohort evaluates both versions: a pair. The two orders differ in their attempt
alone, so that whatever is random in an evaluation is the same for both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TypeAlias

from fl_server.canary.events import (
    ATTEMPTS,
    ROUND,
    ArmDeadline,
    CanaryPlan,
    CandidateMarked,
    CarryOutVerdict,
    CloseOrders,
    Command,
    ComparisonFailed,
    DeadlinePassed,
    Event,
    Fact,
    Judged,
    MarkCandidate,
    MarkingFailed,
    OrderSide,
    OrdersOpened,
    Settled,
    Side,
    SideDeclined,
    SideMeasured,
    Verdict,
    VerdictCarriedOut,
)
from fl_server.canary.state import CanaryState, judge, measured_pairs
from fl_server.flows.commands import ReceiptStatus, SendReceipt
from fl_server.flows.events import (
    DeviceDeclined,
    DeviceJoined,
    DeviceLeft,
    OrderRequested,
    ProductionMoved,
)
from fl_server.flows.flow import Step
from fl_server.rounds.events import EvaluationReceived
from fl_server.selection import uniform

_ROUNDING = 1e-9


def choose(online: Iterable[str], share: float, seed: int) -> tuple[str, ...]:
    """Return a share of the devices that are there, rounded up, at least one where there is one."""
    there = sorted(set(online))
    count = max(1, math.ceil(share * len(there) - _ROUNDING))
    return uniform.select(there, count, seed=seed, round_number=ROUND, attempt=1)


def quorum_of(cohort: Iterable[str]) -> int:
    """Return how many pairs a comparison needs at least: half of the cohort, rounded up."""
    return math.ceil(len(set(cohort)) / 2)


CanaryStep: TypeAlias = Step[Fact, Command]


class CanaryMachine:
    """Coordinates one canary. Not thread-safe: one owner calls it."""

    def __init__(self, plan: CanaryPlan, facts: Iterable[Fact] = ()) -> None:
        self.plan = plan
        self.state = CanaryState(plan.cohort)
        self._online: set[str] = set()
        self._left: set[str] = set()
        for fact in facts:
            self.state.apply(fact)

    def resume(self) -> CanaryStep:
        """Return what is due at the beginning and after a crash; the deadline runs anew."""
        step = CanaryStep()
        match self.state.phase:
            case "opening":
                step.commands += [ArmDeadline(self.plan.deadline_s), MarkCandidate()]
            case "measuring":
                step.commands.append(ArmDeadline(self.plan.deadline_s))
                # a crash may have come between the last answer and the verdict
                self._judge_if_complete(step)
            case "settling":
                self._carry_out(step)
        return step

    def handle(self, event: Event) -> CanaryStep:
        """Handle one event; an event that no longer matters gives an empty step."""
        step = CanaryStep()
        match event:
            case CandidateMarked() if self.state.phase == "opening":
                self._record(OrdersOpened(), step)
                for device_id in self.plan.cohort:
                    self._order(device_id, step)
            case MarkingFailed() if self.state.phase == "opening":
                self._judge("inconclusive", event.reason, step)
            case ComparisonFailed():
                self._failed(event, step)
            case ProductionMoved():
                self._moved(event, step)
            case DeadlinePassed():
                self._deadline(step)
            case VerdictCarriedOut() if self.state.phase == "settling":
                self._record(Settled(event.problem), step)
            case DeviceJoined():
                self._joined(event, step)
            case DeviceLeft():
                self._online.discard(event.device_id)
                self._left.add(event.device_id)
                self._judge_if_complete(step)
            case OrderRequested():
                self._asked(event, step)
            case DeviceDeclined():
                self._declined(event, step)
            case EvaluationReceived():
                self._evaluated(event, step)
        return step

    # --- devices ------------------------------------------------------------------------------

    def _joined(self, event: DeviceJoined, step: CanaryStep) -> None:
        self._left.discard(event.device_id)
        if event.accepting:
            self._online.add(event.device_id)
            self._order(event.device_id, step)
        else:
            self._online.discard(event.device_id)

    def _order(self, device_id: str, step: CanaryStep) -> None:
        if device_id in self._online:
            step.commands += [OrderSide(device_id, side) for side in self.state.owed(device_id)]

    def _asked(self, event: OrderRequested, step: CanaryStep) -> None:
        side = _side(event)
        if side is not None and side in self.state.owed(event.device_id):
            step.commands.append(OrderSide(event.device_id, side))
        elif self.state.phase in {"settling", "ended"}:
            step.commands.append(CloseOrders())

    def _declined(self, event: DeviceDeclined, step: CanaryStep) -> None:
        side = _side(event)
        if side is not None and side in self.state.owed(event.device_id):
            self._record(SideDeclined(event.device_id, side, event.reason), step)
            self._judge_if_complete(step)

    def _evaluated(self, event: EvaluationReceived, step: CanaryStep) -> None:
        state, side = self.state, _side(event)
        if event.device_id not in self.plan.cohort:
            self._receipt(event, "refused", step, "not in this canary's cohort")
        elif side is None or state.phase == "opening":
            self._receipt(event, "unknown", step, "this canary has not ordered that")
        elif side in state.measured.get(event.device_id, {}):
            self._receipt(event, "accepted", step)
        elif side not in state.owed(event.device_id):
            late = state.phase != "measuring"
            self._receipt(
                event, "late" if late else "refused", step, "the canary went on without it"
            )
        else:
            measured = SideMeasured(event.device_id, side, event.num_examples, event.metrics)
            self._record(measured, step)
            self._receipt(event, "accepted", step)
            self._judge_if_complete(step)

    def _receipt(
        self, event: EvaluationReceived, status: ReceiptStatus, step: CanaryStep, reason: str = ""
    ) -> None:
        step.commands.append(
            SendReceipt(event.device_id, "evaluate", event.round, event.attempt, status, reason)
        )

    # --- the verdict --------------------------------------------------------------------------

    def _judge_if_complete(self, step: CanaryStep) -> None:
        if self.state.phase != "measuring":
            return
        pending = {device_id for device_id in self.plan.cohort if self.state.owed(device_id)}
        if not pending or (not pending - self._left and self._enough()):
            self._record(judge(self.plan, self.state), step)
            self._carry_out(step)

    def _deadline(self, step: CanaryStep) -> None:
        if self.state.phase == "opening":
            self._judge("inconclusive", "the store did not answer in time", step)
        elif self.state.phase == "measuring":
            self._record(judge(self.plan, self.state), step)
            self._carry_out(step)

    def _moved(self, event: ProductionMoved, step: CanaryStep) -> None:
        if event.name != self.plan.production.name and self.state.phase in {"opening", "measuring"}:
            now = f"{event.name} is" if event.name else "no version is"
            self._judge(
                "inconclusive",
                f"{now} in production by now, not {self.plan.production.name}, which it was "
                "compared with",
                step,
            )

    def _failed(self, event: ComparisonFailed, step: CanaryStep) -> None:
        match self.state.phase:
            case "opening" | "measuring":
                self._judge("inconclusive", event.reason, step)
            case "settling":
                self._record(Settled(event.reason), step)

    def _enough(self) -> bool:
        return len(measured_pairs(self.plan, self.state)) >= self.plan.quorum

    def _judge(self, verdict: Verdict, reason: str, step: CanaryStep) -> None:
        self._record(Judged(verdict, reason, 0, None, None), step)
        self._carry_out(step)

    def _carry_out(self, step: CanaryStep) -> None:
        judged = self.state.judged
        assert judged is not None
        step.commands += [CloseOrders(), CarryOutVerdict(judged.verdict, judged.reason)]

    def _record(self, fact: Fact, step: CanaryStep) -> None:
        self.state.apply(fact)
        step.facts.append(fact)


def _side(event: DeviceDeclined | OrderRequested | EvaluationReceived) -> Side | None:
    """Return which side's order the event answers, None where none is like that."""
    evaluates = isinstance(event, EvaluationReceived) or event.action == "evaluate"
    return ATTEMPTS.get(event.attempt) if evaluates and event.round == ROUND else None
