"""The round machine: one run's coordination, sans-IO.

``handle(event)`` returns the facts that it decided and the commands that follow; the shell
journals the facts before it carries out the commands. There is no clock, no network and no
randomness here: the state is the fold of the facts (``apply``) plus who is online, which is never
journalled because devices say it again.

After a crash: build a machine, ``apply`` the journalled facts, then ``resume()`` re-issues what was
pending; every timer is armed in full.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TypeAlias

from fl_server.flows.commands import ArmTimer, ReceiptStatus, SendReceipt
from fl_server.flows.events import (
    Action,
    DeviceDeclined,
    DeviceJoined,
    DeviceLeft,
    FailureReported,
    OrderRequested,
    PauseRequested,
    ResumeRequested,
    Role,
    StopRequested,
    TimerFired,
)
from fl_server.flows.flow import Step
from fl_server.rounds.events import (
    Aggregate,
    AggregationFailed,
    AggregationFinished,
    Command,
    DiscardUpdate,
    EvaluationReceived,
    EvaluationRecorded,
    Event,
    Fact,
    FoldUpdate,
    Model,
    OrderDeclined,
    Plan,
    ReportRound,
    ResultReceived,
    RoundAbandoned,
    RoundClosed,
    RoundCommitted,
    RoundOpened,
    RoundRequested,
    RoundStarted,
    RunCompleted,
    RunFailed,
    RunPaused,
    RunResumed,
    RunStopped,
    SendOrder,
    SweepRound,
    SweepRun,
    Update,
    UpdateAccepted,
    UpdateRefused,
    UpdateRejected,
    UpdateVanished,
    UpdateVerified,
    UpdateWithdrawn,
    VerifyUpdate,
)
from fl_server.rounds.ledger import Ledger
from fl_server.rounds.workload import FitRule, Speed, fit
from fl_server.selection import uniform

RoundStep: TypeAlias = Step[Fact, Command]


class RoundMachine:
    """Coordinates one run. Not thread-safe: one owner calls it."""

    def __init__(self, plan: Plan, initial: Model, facts: Iterable[Fact] = ()) -> None:
        self.plan = plan
        self.ledger = Ledger(plan.rounds, initial, on_request=plan.on_request)
        self._online: dict[str, Role] = {}
        self._draining: set[str] = set()
        self._left: set[str] = set()
        self._verifying: dict[str, Update] = {}
        self._ordered_evaluation: set[str] = set()
        self._gather_armed = False
        for fact in facts:
            self.ledger.apply(fact)

    # --- events in, steps out -----------------------------------------------------------------

    def handle(self, event: Event) -> RoundStep:
        """Handle one event; an event that no longer matters gives an empty step."""
        step = RoundStep()
        match event:
            case DeviceJoined():
                self._joined(event, step)
            case DeviceLeft():
                self._gone(event.device_id, step)
            case RoundRequested():
                self._requested(event, step)
            case ResultReceived():
                self._result(event, step)
            case UpdateVerified() | UpdateRejected():
                self._verified(event, step)
            case UpdateVanished():
                self._vanished(event, step)
            case DeviceDeclined() | OrderRequested():
                self._device_asked(event, step)
            case EvaluationReceived():
                self._evaluated(event, step)
            case TimerFired():
                self._timer(event, step)
            case AggregationFinished() | AggregationFailed():
                self._aggregated(event, step)
            case PauseRequested() | ResumeRequested() | StopRequested():
                self._operator(event, step)
            case FailureReported() if self.ledger.phase != "ended":
                self._end(RunFailed(event.reason), step)
        return step

    def resume(self) -> RoundStep:
        """Re-issue what was pending when the server went down; orders follow as devices join."""
        step, ledger = RoundStep(), self.ledger
        for device_id, update in sorted(ledger.accepted.items()):
            if ledger.phase in {"collecting", "aggregating"}:
                step.commands.append(FoldUpdate(device_id, ledger.round, ledger.attempt, update))
        self._report(step)
        match ledger.phase:
            case "collecting":
                self._arm_deadline(step)
                self._close_if_complete(step)
            case "aggregating":
                step.commands.append(Aggregate(ledger.round, ledger.attempt, ledger.included))
            case "evaluating":
                self._arm_evaluation(step)
            case "ended":
                step.commands.append(SweepRun())
        return step

    # --- devices ------------------------------------------------------------------------------

    def _joined(self, event: DeviceJoined, step: RoundStep) -> None:
        device_id = event.device_id
        self._online[device_id] = event.role
        self._left.discard(device_id)
        if not event.accepting:
            self._draining.add(device_id)
            return
        self._draining.discard(device_id)
        if self._owes_update(device_id):
            self._order(device_id, step)
        self._evaluate(device_id, step)
        self._start_if_ready(step)

    def _gone(self, device_id: str, step: RoundStep) -> None:
        self._online.pop(device_id, None)
        self._draining.discard(device_id)
        self._left.add(device_id)
        self._close_if_complete(step)
        if device_id in self._ordered_evaluation:
            self._ordered_evaluation.discard(device_id)
            self._complete_if_evaluated(step)

    def _device_asked(self, event: DeviceDeclined | OrderRequested, step: RoundStep) -> None:
        device_id, ledger = event.device_id, self.ledger
        if event.action == "evaluate":
            if isinstance(event, OrderRequested):
                self._evaluate(device_id, step)
            elif event.round == ledger.model.version:
                self._ordered_evaluation.discard(device_id)
                self._complete_if_evaluated(step)
            return
        if not self._is_current(event.round, event.attempt) or not self._owes_update(device_id):
            return
        if isinstance(event, OrderRequested):
            self._order(device_id, step)
            return
        pair = (ledger.round, ledger.attempt)
        self._record(OrderDeclined(*pair, device_id, event.reason, event.unusable), step)
        self._close_if_complete(step)

    # --- updates ------------------------------------------------------------------------------

    def _result(self, event: ResultReceived, step: RoundStep) -> None:
        device_id, ledger = event.device_id, self.ledger
        counted = ledger.counted(event.round, event.attempt, device_id)
        if counted is not None:
            same = counted == event.update.header_sha256
            reason = "" if same else "another update of this device was already counted"
            self._receipt(event, "accepted" if same else "refused", step, reason)
            if not self._serves(event.round, event.attempt):
                step.commands.append(DiscardUpdate(event.update.key))
            return
        if event.round > ledger.round:
            self._receipt(event, "unknown", step, f"this run has not reached round {event.round}")
            return
        if not self._is_current(event.round, event.attempt):
            self._receipt(event, "late", step, "the round went on without it")
            step.commands.append(DiscardUpdate(event.update.key))
            return
        if device_id not in ledger.cohort:
            self._receipt(event, "refused", step, "not in this round's cohort")
            step.commands.append(DiscardUpdate(event.update.key))
            return
        if device_id in ledger.refused:
            self._receipt(event, "refused", step, ledger.refused[device_id])
            return
        if device_id in self._verifying:
            return
        if event.fault:
            self._refuse(event, event.fault, step)
            self._close_if_complete(step)
            return
        self._verifying[device_id] = event.update
        step.commands.append(VerifyUpdate(device_id, event.round, event.attempt, event.update))

    def _verified(self, event: UpdateVerified | UpdateRejected, step: RoundStep) -> None:
        device_id, ledger = event.device_id, self.ledger
        if not self._is_current(event.round, event.attempt):
            self._receipt(event, "late", step, "the round went on without it")
            step.commands.append(DiscardUpdate(event.update.key))
            return
        if self._verifying.get(device_id) != event.update:
            return
        del self._verifying[device_id]
        if isinstance(event, UpdateRejected):
            self._refuse(event, event.reason, step)
        else:
            self._record(
                UpdateAccepted(ledger.round, ledger.attempt, device_id, event.update), step
            )
            self._receipt(event, "accepted", step)
            step.commands.append(FoldUpdate(device_id, event.round, event.attempt, event.update))
        self._close_if_complete(step)

    def _refuse(self, event: ResultReceived | UpdateRejected, reason: str, step: RoundStep) -> None:
        ledger = self.ledger
        self._record(UpdateRefused(ledger.round, ledger.attempt, event.device_id, reason), step)
        self._receipt(event, "refused", step, reason)
        step.commands.append(DiscardUpdate(event.update.key))

    def _vanished(self, event: UpdateVanished, step: RoundStep) -> None:
        ledger, pair = self.ledger, (event.round, event.attempt)
        if ledger.phase == "aggregating" and pair == (ledger.round, ledger.attempt):
            self._abandon(f"the update of {event.device_id} vanished: {event.reason}", step)
        elif self._is_current(*pair) and event.device_id in ledger.accepted:
            self._record(UpdateWithdrawn(*pair, event.device_id, event.reason), step)
            self._order(event.device_id, step)

    # --- rounds -------------------------------------------------------------------------------

    def _candidates(self) -> list[str]:
        return [
            device_id
            for device_id, role in self._online.items()
            if role == "trainer" and device_id not in self._draining
        ]

    def _requested(self, event: RoundRequested, step: RoundStep) -> None:
        """Begin a requested round; one that is open or was committed is not begun again."""
        ledger = self.ledger
        if not self.plan.on_request or not event.round <= self.plan.rounds:
            return
        if ledger.made is not None and event.round == ledger.made.version:
            self._report(step)
            return
        is_open = ledger.phase in {"gathering", "collecting", "aggregating"}
        is_same = is_open and (event.round, event.base) == (ledger.round, ledger.model)
        if is_same or event.round < ledger.round or not (is_open or ledger.phase == "waiting"):
            return
        if ledger.phase in {"collecting", "aggregating"}:
            self._verifying.clear()
            step.commands.append(SweepRound(ledger.round, ledger.attempt))
            reason = f"round {event.round} was requested from another model"
            self._record(RoundAbandoned(ledger.round, ledger.attempt, reason), step)
        pair = (event.round, ledger.attempt if event.round == ledger.round else 1)
        self._gather_armed = self._gather_armed and pair == (ledger.round, ledger.attempt)
        self._record(RoundOpened(*pair, event.base), step)
        self._start_if_ready(step)

    def _report(self, step: RoundStep) -> None:
        made = self.ledger.made
        if made is not None:
            step.commands.append(ReportRound(made.version, made))

    def _invitations(self) -> int:
        return math.ceil(self.plan.cohort_size * self.plan.over_selection)

    def _start_if_ready(self, step: RoundStep, *, gathered: bool = False) -> None:
        ledger, plan = self.ledger, self.plan
        if ledger.phase != "gathering" or ledger.status != "running":
            return
        candidates = self._candidates()
        if len(candidates) >= self._invitations() or (gathered and len(candidates) >= plan.quorum):
            self._start(candidates, step)
        elif len(candidates) >= plan.quorum and not self._gather_armed:
            self._gather_armed = True
            step.commands.append(ArmTimer("gather", ledger.round, ledger.attempt, plan.gather_s))

    def _start(self, candidates: list[str], step: RoundStep) -> None:
        ledger, plan = self.ledger, self.plan
        cohort = uniform.select(
            candidates,
            self._invitations(),
            seed=plan.seed,
            round_number=ledger.round,
            attempt=ledger.attempt,
        )
        self._gather_armed = False
        self._verifying.clear()
        target = min(plan.cohort_size, len(cohort))
        work = {} if plan.fit is None else fit(cohort, self._speeds(plan.fit), plan.fit)
        self._record(RoundStarted(ledger.round, ledger.attempt, cohort, target, work), step)
        for device_id in cohort:
            self._order(device_id, step)
        self._arm_deadline(step)

    def _speeds(self, rule: FitRule) -> dict[str, Speed]:
        return {**rule.known, **self.ledger.speeds}

    def _close_if_complete(self, step: RoundStep, *, deadline: bool = False) -> None:
        ledger = self.ledger
        if ledger.phase != "collecting":
            return
        enough = len(ledger.accepted) >= self.plan.quorum
        # a device that reported and then left has answered
        lost = self._left - set(self._verifying)
        pending = set(ledger.cohort) - ledger.answered - lost
        if len(ledger.accepted) >= ledger.target or (enough and (deadline or not pending)):
            included = tuple(sorted(ledger.accepted))
            self._record(RoundClosed(ledger.round, ledger.attempt, included), step)
            step.commands.append(Aggregate(ledger.round, ledger.attempt, included))
        elif ledger.all_unusable:
            first = min(ledger.refused)
            self._abandon(
                f"every update was refused; that of {first}: {ledger.refused[first]}", step
            )
        elif deadline:
            self._abandon(
                f"{len(ledger.accepted)} of at least {self.plan.quorum} updates at the deadline",
                step,
            )

    def _abandon(self, reason: str, step: RoundStep) -> None:
        ledger = self.ledger
        if ledger.repeats_itself or ledger.attempt >= self.plan.max_attempts:
            self._end(RunFailed(f"round {ledger.round}, attempt {ledger.attempt}: {reason}"), step)
            return
        self._verifying.clear()
        step.commands.append(SweepRound(ledger.round, ledger.attempt))
        self._record(RoundAbandoned(ledger.round, ledger.attempt, reason), step)
        self._start_if_ready(step)

    def _aggregated(self, event: AggregationFinished | AggregationFailed, step: RoundStep) -> None:
        ledger = self.ledger
        pair = (event.round, event.attempt)
        if ledger.phase != "aggregating" or pair != (ledger.round, ledger.attempt):
            return
        if isinstance(event, AggregationFailed):
            self._abandon(event.reason, step)
            return
        self._verifying.clear()
        self._ordered_evaluation.clear()
        self._record(RoundCommitted(*pair, event.model), step)
        self._report(step)
        step.commands.append(SweepRound(*pair))
        for device_id in sorted(self._online):
            self._evaluate(device_id, step)
        if event.round < self.plan.rounds:
            self._start_if_ready(step)
        elif self._missing_evaluations():
            self._arm_evaluation(step)
        else:
            self._end(RunCompleted(), step)

    # --- evaluation ---------------------------------------------------------------------------

    def _evaluators(self) -> list[str]:
        online = sorted(set(self._online) - self._draining)
        evaluators = [name for name in online if self._online[name] == "evaluator"]
        trainers = [name for name in online if self._online[name] == "trainer"]
        match self.plan.evaluate_on:
            case "evaluators":
                return evaluators
            case "devices":
                return trainers
        return []

    def _evaluate(self, device_id: str, step: RoundStep) -> None:
        ledger, version = self.ledger, self.ledger.model.version
        due = version > 0 and (
            version % self.plan.evaluate_every == 0 or version == self.plan.rounds
        )
        if not due or ledger.phase == "ended" or device_id not in self._evaluators():
            return
        if device_id not in ledger.evaluations.get(version, {}):
            self._ordered_evaluation.add(device_id)
            step.commands.append(SendOrder(device_id, "evaluate", version, 1))

    def _missing_evaluations(self) -> set[str]:
        answered = self.ledger.evaluations.get(self.ledger.model.version, {})
        return self._ordered_evaluation - set(answered)

    def _evaluated(self, event: EvaluationReceived, step: RoundStep) -> None:
        ledger = self.ledger
        if not 1 <= event.round <= ledger.model.version:
            self._receipt(event, "unknown", step, f"version {event.round} is not committed here")
            return
        known = event.device_id in ledger.evaluations.get(event.round, {})
        if not known and ledger.phase == "ended":
            self._receipt(event, "late", step, "the run has ended")
            return
        if not known:
            self._record(
                EvaluationRecorded(
                    event.round,
                    event.device_id,
                    event.num_examples,
                    event.metrics,
                    event.usage,
                ),
                step,
            )
        self._receipt(event, "accepted", step)
        self._complete_if_evaluated(step)

    def _complete_if_evaluated(self, step: RoundStep) -> None:
        if self.ledger.phase == "evaluating" and not self._missing_evaluations():
            self._end(RunCompleted(), step)

    # --- timers and the operator --------------------------------------------------------------

    def _timer(self, event: TimerFired, step: RoundStep) -> None:
        ledger = self.ledger
        if (event.round, event.attempt) != (ledger.round, ledger.attempt):
            return
        match event.timer:
            case "gather" if ledger.phase == "gathering":
                self._gather_armed = False
                self._start_if_ready(step, gathered=True)
            case "deadline":
                self._close_if_complete(step, deadline=True)
            case "evaluation" if ledger.phase == "evaluating":
                self._end(RunCompleted(), step)

    def _operator(
        self, event: PauseRequested | ResumeRequested | StopRequested, step: RoundStep
    ) -> None:
        ledger = self.ledger
        match event:
            case PauseRequested() if ledger.status == "running":
                self._record(RunPaused(), step)
            case ResumeRequested() if ledger.status == "paused":
                self._record(RunResumed(), step)
                self._start_if_ready(step)
            case StopRequested() if ledger.phase != "ended":
                self._end(RunStopped(event.reason), step)

    # --- small parts --------------------------------------------------------------------------

    def _is_current(self, round_number: int, attempt: int) -> bool:
        ledger = self.ledger
        pair = (round_number, attempt)
        return ledger.phase == "collecting" and pair == (ledger.round, ledger.attempt)

    def _serves(self, round_number: int, attempt: int) -> bool:
        """Whether the attempt's objects may still be read; those of others were swept."""
        ledger = self.ledger
        pair = (round_number, attempt)
        open_phase = ledger.phase in {"collecting", "aggregating"}
        return open_phase and pair == (ledger.round, ledger.attempt)

    def _owes_update(self, device_id: str) -> bool:
        ledger = self.ledger
        return (
            ledger.phase == "collecting"
            and device_id in ledger.cohort
            and device_id not in ledger.answered
            and device_id not in self._verifying
        )

    def _order(self, device_id: str, step: RoundStep) -> None:
        step.commands.append(SendOrder(device_id, "train", self.ledger.round, self.ledger.attempt))

    def _receipt(
        self,
        event: ResultReceived | UpdateVerified | UpdateRejected | EvaluationReceived,
        status: ReceiptStatus,
        step: RoundStep,
        reason: str = "",
    ) -> None:
        action: Action = "evaluate" if isinstance(event, EvaluationReceived) else "train"
        step.commands.append(
            SendReceipt(event.device_id, action, event.round, event.attempt, status, reason)
        )

    def _arm_deadline(self, step: RoundStep) -> None:
        ledger = self.ledger
        step.commands.append(
            ArmTimer("deadline", ledger.round, ledger.attempt, self.plan.deadline_s)
        )

    def _arm_evaluation(self, step: RoundStep) -> None:
        ledger = self.ledger
        step.commands.append(
            ArmTimer("evaluation", ledger.round, ledger.attempt, self.plan.evaluation_deadline_s)
        )

    def _end(self, fact: RunCompleted | RunStopped | RunFailed, step: RoundStep) -> None:
        self._verifying.clear()
        self._record(fact, step)
        step.commands.append(SweepRun())

    def _record(self, fact: Fact, step: RoundStep) -> None:
        self.ledger.apply(fact)
        step.facts.append(fact)
