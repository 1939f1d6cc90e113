"""Flows of the kind ``canary``: a candidate is measured against production on the same devices.

The canary machine decides; what stands here makes its commands of orders and of changes in the
registry.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from broker.wire.messages import RunDocument
from fl_server.canary.events import (
    DEADLINE,
    FACTS,
    ArmDeadline,
    CanaryPlan,
    CandidateMarked,
    CarryOutVerdict,
    CloseOrders,
    ComparisonFailed,
    DeadlinePassed,
    Event,
    Fact,
    MarkCandidate,
    MarkingFailed,
    OrderSide,
    Settled,
    VerdictCarriedOut,
)
from fl_server.canary.events import Command as CanaryCommand
from fl_server.canary.machine import CanaryMachine, CanaryStep
from fl_server.canary.messages import closing_of, order_of, shown
from fl_server.dataplane.plane import DataPlane
from fl_server.flows.commands import (
    AnnounceProduction,
    ArmTimer,
    Command,
    NoteAudit,
    PublishDocument,
    StartTask,
)
from fl_server.flows.events import DeviceAnswered, FailureReported
from fl_server.flows.flow import Flow, Step, receipt_of
from fl_server.kinds.base import FlowKind, FlowServices
from fl_server.rounds.events import EvaluationReceived
from fl_server.runs.definition import RunDefinition
from fl_server.runs.record import FactRecord, RunRecord, Vocabulary
from runtime.errors import ConfigError
from storage.registry.registry import ModelRegistry

_BY_PROMOTION = "a canary is begun by `rengo models promote --canary`, it is not submitted"


class CanaryFlow(Flow):
    """One canary."""

    def __init__(
        self, record: RunRecord[CanaryPlan], facts: Iterable[FactRecord], data: DataPlane
    ) -> None:
        self.run_id, self.plan = record.run_id, record.plan
        self.task, self.bundled = record.plan.task, record.plan.bundle is not None
        self.machine = CanaryMachine(record.plan, [row.fact for row in facts])
        self._data = data

    @property
    def ended(self) -> bool:
        """Whether the verdict is carried out."""
        return self.machine.state.phase == "ended"

    def handle(self, event: object) -> Step[Fact, Command]:
        """Handle one event of the shell or of the registry's tasks."""
        match event:
            case DeviceAnswered(action="evaluate"):
                place = (event.device_id, event.round, event.attempt)
                measured = (event.num_examples, dict(event.metrics))
                return self._handle(EvaluationReceived(*place, *measured))
            case DeviceAnswered():
                return Step([], [receipt_of(event, "refused", "a canary takes no updates")])
            case FailureReported():
                return self._handle(ComparisonFailed(event.reason))
            case _ if event == DEADLINE:
                return self._handle(DeadlinePassed())
            case _ if isinstance(event, Event):
                return self._handle(event)
        return Step()

    def resume(self) -> Step[Fact, Command]:
        """Return what is due at the beginning and after a crash; the deadline runs anew."""
        return self._translated(self.machine.resume())

    def document(self, epoch: int) -> RunDocument | None:
        """Return what ends the devices' jobs, None as long as they are wanted."""
        return None if self.machine.state.judged is None else closing_of(self.plan, epoch)

    def shown(self, time_left_s: float) -> dict[str, Any]:
        """Return how the canary stands, for operators."""
        return shown(self.plan, self.machine.state, time_left_s)

    def _handle(self, event: Event) -> Step[Fact, Command]:
        return self._translated(self.machine.handle(event))

    # --- what goes out ------------------------------------------------------------------------

    def _translated(self, step: CanaryStep) -> Step[Fact, Command]:
        commands = [self._command(each) for each in step.commands]
        if any(isinstance(fact, Settled) for fact in step.facts):
            commands += [self._audit(), AnnounceProduction(self.task)]
        return Step(step.facts, commands)

    def _command(self, command: CanaryCommand) -> Command:
        match command:
            case ArmDeadline():
                return ArmTimer(DEADLINE.timer, DEADLINE.round, DEADLINE.attempt, command.seconds)
            case OrderSide():
                return order_of(self.plan, command)
            case CloseOrders():
                return PublishDocument()
            case MarkCandidate():
                return self._marking()
            case CarryOutVerdict():
                return self._carrying_out(command)
        return command

    def _audit(self) -> NoteAudit:
        state, plan = self.machine.state, self.plan
        assert state.judged is not None
        detail = {"canary": self.run_id, "why": state.problem or state.judged.reason}
        act = f"canary {state.judged.verdict.replace('_', ' ')}"
        return NoteAudit("server", act, plan.candidate.name, detail)

    def _marking(self) -> StartTask:
        plan, registry = self.plan, self._data.registry
        reason = f"in a canary against {plan.production.name} ({self.run_id})"

        def mark() -> None:
            version = registry.get(plan.candidate.run_id, plan.candidate.version)
            registry.candidate(version, reason)

        def work() -> CandidateMarked:
            self._data.patiently(mark)
            return CandidateMarked()

        return StartTask(work, "registry", failed=lambda error: MarkingFailed(str(error)))

    def _carrying_out(self, command: CarryOutVerdict) -> StartTask:
        def work() -> VerdictCarriedOut:
            problem = self._data.patiently(
                lambda: _carry_out_verdict(self._data.registry, self.plan, command)
            )
            return VerdictCarriedOut(problem)

        return StartTask(work, "registry", failed=lambda error: VerdictCarriedOut(str(error)))


def _carry_out_verdict(registry: ModelRegistry, plan: CanaryPlan, command: CarryOutVerdict) -> str:
    """Bring the versions' stages to the verdict, once or again; return what is in its way."""
    candidate = registry.get(plan.candidate.run_id, plan.candidate.version)
    production = registry.production(plan.task)
    now = "" if production is None else production.name
    if now == candidate.name:
        return ""  # promoted before a crash, or by the operator
    if command.verdict == "promoted" and now == plan.production.name:
        registry.promote(candidate, command.reason)
        return ""
    if candidate.record.stage == "candidate":
        registry.archive(candidate, command.reason)
    if command.verdict != "promoted":
        return ""
    return f"{now or 'nothing'} is in production by now; the candidate was archived"


class CanaryKind(FlowKind):
    """Canaries: begun by a promotion, see ``fl_server/deployment/canaries.py``."""

    vocabulary = Vocabulary(CanaryPlan, FACTS)
    is_submitted = False

    def check(self, definition: RunDefinition) -> None:
        """Refuse: nobody submits a canary."""
        raise ConfigError(_BY_PROMOTION)

    def plan(self, run_id: str, definition: RunDefinition, services: FlowServices) -> CanaryPlan:
        """Refuse: a canary is begun with its plan."""
        raise ConfigError(_BY_PROMOTION)

    def open(
        self, record: RunRecord[CanaryPlan], facts: Sequence[FactRecord], services: FlowServices
    ) -> CanaryFlow:
        """Return the canary as its facts left it."""
        return CanaryFlow(record, facts, services.data)
