"""The round machine: one run's coordination, sans-IO.

``handle(event)`` returns the facts that it decided and the commands that follow; the shell
journals the facts before it carries out the commands. There is no clock, no network and no
randomness here: the state is the fold of the facts (``apply``) plus who is online, which is never
journalled because devices say it again.

After a crash: build a machine, ``apply`` the journalled facts, then ``resume()`` re-issues what was
pending; every timer is armed in full.
"""

from __future__ import annotations

from collections.abc import Iterable

from fl_server.flows.commands import ArmTimer, SendReceipt
from fl_server.flows.events import (
    DeviceBusy,
    DeviceDeclined,
    DeviceJoined,
    DeviceLeft,
    FailureReported,
    OrderRequested,
    PauseRequested,
    ResumeRequested,
    StopRequested,
    TimerFired,
)
from fl_server.flows.flow import Step
from fl_server.rounds.best import BestVersion
from fl_server.rounds.commands import (
    Aggregate,
    DiscardUpdate,
    FoldUpdate,
    ReportRound,
    SendOrder,
    SweepRound,
    SweepRun,
    TagBest,
)
from fl_server.rounds.evaluation import VersionEvaluation
from fl_server.rounds.events import (
    AggregationFailed,
    AggregationFinished,
    CompletionReported,
    DevicesJoined,
    EvaluationReceived,
    Event,
    ResultReceived,
    RoundRequested,
    UpdateDelivered,
    UpdateRejected,
    UpdatesDelivered,
    UpdateVanished,
    UpdateVerified,
)
from fl_server.rounds.facts import (
    Fact,
    OrderDeclined,
    RequestFailed,
    RoundAbandoned,
    RoundClosed,
    RoundCommitted,
    RoundOpened,
    RoundStarted,
    RunCompleted,
    RunFailed,
    RunPaused,
    RunResumed,
    RunStopped,
    RunStoppedEarly,
    UpdateWithdrawn,
)
from fl_server.rounds.gathering import Gathering
from fl_server.rounds.ledger import Ledger, RoundStep
from fl_server.rounds.model import Model
from fl_server.rounds.plan import EvaluateOn, Plan
from fl_server.rounds.roster import Roster
from fl_server.rounds.updates import UpdateIntake
from fl_server.rounds.workload import FitRule, Speed, WidthOf, fit, whole_model, with_widths
from runtime.bounds import MAX_ROUNDS

RESEND_S = 10.0
_ANSWERS = (SendReceipt, DiscardUpdate, SweepRound, TagBest, ReportRound)


class RoundMachine:
    """Coordinates one run. Not thread-safe: one owner calls it.

    Args:
        facts: the journalled ones.
        width_of: asked when a round starts; its answers are in the fact.
        ledger: what earlier facts add up to, where not they were kept but that.
    """

    def __init__(
        self,
        plan: Plan,
        initial: Model,
        facts: Iterable[Fact] = (),
        width_of: WidthOf = whole_model,
        ledger: Ledger | None = None,
    ) -> None:
        self.plan, self._width_of = plan, width_of
        self.ledger = ledger or Ledger(plan.rounds, initial, on_request=plan.on_request)
        self._roster = Roster()
        self._updates = UpdateIntake(self.ledger)
        self._evaluation = VersionEvaluation(plan, self.ledger, self._roster, width_of)
        self._best = BestVersion(plan, self.ledger, self._roster)
        self._gathering = Gathering(plan, self.ledger, self._roster)
        self._return_armed = False
        for fact in facts:
            self.ledger.apply(fact)

    @property
    def held(self) -> frozenset[int]:
        """The versions that stay whatever the run's retention says."""
        return self._best.held

    def is_domain(self, device_id: str) -> bool:
        """Whether there are devices below a device."""
        return self._roster.is_domain(device_id)

    def is_idle(self, device_id: str) -> bool:
        """Whether a device is online and carries out no order."""
        return self._roster.is_idle(device_id)

    def evaluators(self, on: EvaluateOn) -> list[str]:
        """Return who is here that may evaluate, of trainers or of evaluators and domains."""
        return self._roster.evaluators() if on == "evaluators" else list(self.trainers())

    def trainers(self) -> tuple[str, ...]:
        """Return who is here that takes orders to train."""
        return self._roster.accepting("trainer")

    # --- events in, steps out -----------------------------------------------------------------

    def handle(self, event: Event) -> RoundStep:
        """Handle one event; an event that no longer matters gives an empty step."""
        step: RoundStep = Step()
        match event:
            case DeviceJoined() | DevicesJoined():
                self._joined(event, step)
            case DeviceBusy():
                self._roster.busy(event)
                self._gathering.heard_from(event.device_id)
            case DeviceLeft():
                self._gone(event, step)
            case RoundRequested():
                self._requested(event, step)
            case ResultReceived() | UpdateDelivered() | UpdatesDelivered():
                self._reported(event, step)
            case UpdateVerified() | UpdateRejected():
                self._updates.checked(event, step)
                self._close_if_complete(step)
            case UpdateVanished():
                self._vanished(event, step)
            case DeviceDeclined() | OrderRequested():
                self._device_asked(event, step)
            case EvaluationReceived():
                self._gathering.heard_from(event.device_id)
                self._evaluation.received(event, step)
                self._complete_if_evaluated(step)
            case TimerFired():
                self._timer(event, step)
            case AggregationFinished() | AggregationFailed():
                self._aggregated(event, step)
            case PauseRequested() | ResumeRequested() | StopRequested() | CompletionReported():
                self._operator(event, step)
            case FailureReported() if self.ledger.phase != "ended":
                self._end(RunFailed(event.reason), step)
        self._best.judge(step)
        if self.ledger.phase != "ended" and self._best.standstill:
            # the event may have begun what does not go on
            step.commands[:] = [each for each in step.commands if isinstance(each, _ANSWERS)]
            self._end(RunStoppedEarly(self._best.standstill), step)
        return step

    def resume(self) -> RoundStep:
        """Re-issue what was pending when the server went down; orders follow as devices join."""
        step: RoundStep = Step()
        ledger = self.ledger
        for device_id, update in sorted(ledger.accepted.items()):
            if ledger.phase in {"collecting", "aggregating"}:
                place = (device_id, ledger.round, ledger.attempt)
                step.commands.append(FoldUpdate(*place, update, ledger.width_of(device_id)))
        if ledger.best is not None:
            step.commands.append(TagBest(ledger.best[0]))
        self._report(step)
        match ledger.phase:
            case "collecting":
                self._arm_collecting(step)
                self._close_if_complete(step)
            case "aggregating":
                step.commands.append(self._aggregate())
            case "evaluating":
                self._arm_evaluation(step)
            case "ended":
                step.commands.append(SweepRun())
        return step

    # --- devices ------------------------------------------------------------------------------

    def _joined(self, event: DeviceJoined | DevicesJoined, step: RoundStep) -> None:
        if isinstance(event, DevicesJoined):
            for device_id in event.device_ids:
                self._came(DeviceJoined(device_id, event.role), step)
            self._start_if_ready(step)
            return
        self._came(event, step)
        if event.accepting:
            self._start_if_ready(step)

    def _came(self, event: DeviceJoined, step: RoundStep) -> None:
        is_back = self._roster.joined(event)
        self._gathering.heard_from(event.device_id, is_back=is_back)
        if not event.accepting:
            return
        if self._updates.owed_by(event.device_id):
            self._order(event.device_id, step)
        self._evaluation.join(event.device_id, step)

    def _gone(self, event: DeviceLeft, step: RoundStep) -> None:
        was_awaited = event.device_id in self._evaluation.awaited
        self._roster.went(event)
        self._close_if_complete(step)
        self._start_if_ready(step)
        if was_awaited:
            self._complete_if_evaluated(step)

    def _device_asked(self, event: DeviceDeclined | OrderRequested, step: RoundStep) -> None:
        device_id, pair = event.device_id, (event.round, event.attempt)
        self._gathering.heard_from(device_id)
        if event.action == "evaluate":
            if isinstance(event, OrderRequested):
                self._evaluation.asked(event, step)
            elif self._evaluation.declined(event, step):
                self._complete_if_evaluated(step)
        elif self.ledger.collects(*pair) and self._updates.owed_by(device_id):
            if isinstance(event, OrderRequested):
                self._order(device_id, step)
            else:
                place, reason = (*pair, device_id), event.reason
                declined = OrderDeclined(*place, reason, event.unusable, event.permanent)
                self.ledger.record(declined, step)
                if device_id not in self.ledger.unusable:
                    self._gathering.resting.add(device_id)
                self._close_if_complete(step)

    def _reported(
        self, event: ResultReceived | UpdateDelivered | UpdatesDelivered, step: RoundStep
    ) -> None:
        updates = event.updates if isinstance(event, UpdatesDelivered) else (event,)
        for each in updates:
            self._gathering.heard_from(each.device_id)
            self._updates.reported(each, step)
            # what comes after the last one that the round waits for is late
            if each is updates[-1] or len(self.ledger.accepted) >= self.ledger.target:
                self._close_if_complete(step)

    def _vanished(self, event: UpdateVanished, step: RoundStep) -> None:
        ledger, pair = self.ledger, (event.round, event.attempt)
        if ledger.phase == "aggregating" and pair == (ledger.round, ledger.attempt):
            self._abandon(f"the update of {event.device_id} vanished: {event.reason}", step)
        elif ledger.collects(*pair) and event.device_id in ledger.accepted:
            ledger.record(UpdateWithdrawn(*pair, event.device_id, event.reason), step)
            self._order(event.device_id, step)

    # --- rounds -------------------------------------------------------------------------------

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
            self._updates.forget()
            step.commands.append(SweepRound(ledger.round, ledger.attempt))
            reason = f"round {event.round} was requested from another model"
            self.ledger.record(RoundAbandoned(ledger.round, ledger.attempt, reason), step)
        pair = (event.round, ledger.attempt if event.round == ledger.round else 1)
        self._gathering.begin(same_attempt=pair == (ledger.round, ledger.attempt))
        opened = RoundOpened(*pair, event.base, event.training, event.deadline_s)
        self.ledger.record(opened, step)
        self._start_if_ready(step)

    def _report(self, step: RoundStep) -> None:
        made = self.ledger.made
        if made is not None:
            step.commands.append(ReportRound(made.version, made))

    def _start_if_ready(self, step: RoundStep, *, waited: bool = False) -> None:
        if self.ledger.phase != "gathering" or self.ledger.status != "running":
            return
        cohort = self._gathering.cohort(waited=waited)
        if cohort:
            self._start(cohort, step)
        else:
            self._gathering.wait(step)

    def _start(self, cohort: tuple[str, ...], step: RoundStep) -> None:
        ledger, plan = self.ledger, self.plan
        self._return_armed = False
        self._updates.forget()
        target = min(plan.cohort_size, len(cohort))
        fitted = {} if plan.fit is None else fit(cohort, self._speeds(plan.fit), plan.fit)
        widths = {device_id: self._width_of(device_id, ledger.round) for device_id in cohort}
        work = with_widths(fitted, widths)
        # the cohort is among those that take orders
        population = self._roster.population(ledger.known)
        started = RoundStarted(ledger.round, ledger.attempt, cohort, target, work, population)
        ledger.record(started, step)
        for device_id in cohort:
            self._order(device_id, step)
        self._arm_collecting(step)

    def _aggregate(self) -> Aggregate:
        ledger = self.ledger
        return Aggregate(ledger.round, ledger.attempt, ledger.included, ledger.population_below)

    def _speeds(self, rule: FitRule) -> dict[str, Speed]:
        return {**rule.known, **self.ledger.speeds}

    def _close_if_complete(
        self, step: RoundStep, *, deadline: bool = False, nobody_came: bool = False
    ) -> None:
        ledger = self.ledger
        if ledger.phase != "collecting" or not (deadline or self._may_be_complete()):
            return
        owing = set(ledger.cohort) - ledger.answered - self._roster.removed
        # a device that reported and then left has answered
        here = owing - (self._roster.left - set(self._updates.verifying))
        enough = len(ledger.accepted) >= self.plan.quorum
        is_over = deadline or not here - self._gathering.silent
        if deadline:
            self._gathering.silent |= here - set(self._updates.verifying)
        if len(ledger.accepted) >= ledger.target or (enough and is_over):
            included = tuple(sorted(ledger.accepted))
            ledger.record(RoundClosed(ledger.round, ledger.attempt, included), step)
            step.commands.append(self._aggregate())
        elif ledger.all_unusable or deadline or not owing or (nobody_came and not here):
            self._abandon(self._shortfall(deadline=deadline), step, excused=self._is_excused())
        elif not here and not self._return_armed:
            self._return_armed = True
            self._arm("return", self.plan.gather_s, step)

    def _may_be_complete(self) -> bool:
        """Whether nobody is awaited that is there: asked at every update, so it must be cheap."""
        ledger, roster, silent = self.ledger, self._roster, self._gathering.silent
        if len(ledger.accepted) >= ledger.target:
            return True
        return not any(
            device_id not in ledger.accepted
            and device_id not in ledger.refused
            and device_id not in roster.left
            and device_id not in silent
            for device_id in ledger.cohort
        )

    def _shortfall(self, *, deadline: bool) -> str:
        """Return why an attempt ends without a model."""
        ledger, refused = self.ledger, self.ledger.refused
        first = min(refused, default="")
        if ledger.all_unusable:
            return f"every update was refused; that of {first}: {refused[first]}"
        when = " at the deadline" if deadline else ", and nobody else is awaited"
        counted = f"{len(ledger.accepted)} of at least {self.plan.quorum} updates{when}"
        if not refused:
            return counted
        others = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        return f"{counted}; {first} declined{others}: {refused[first]}"

    def _is_excused(self) -> bool:
        """Whether those that declined for now would have made a quorum with the accepted."""
        ledger = self.ledger
        deferred = len(ledger.refused) - len(ledger.unusable)
        return deferred > 0 and len(ledger.accepted) + deferred >= self.plan.quorum

    def _abandon(self, reason: str, step: RoundStep, *, excused: bool = False) -> None:
        ledger = self.ledger
        is_last = ledger.attempt - ledger.excused >= self.plan.max_attempts and not excused
        if ledger.repeats_itself or is_last or ledger.attempt >= MAX_ROUNDS:
            self._give_up(reason, step)
            return
        self._updates.forget()
        step.commands.append(SweepRound(ledger.round, ledger.attempt))
        ledger.record(RoundAbandoned(ledger.round, ledger.attempt, reason, excused), step)
        self._start_if_ready(step)

    def _give_up(self, reason: str, step: RoundStep) -> None:
        """End the run, or a requested round alone: another request may find what it needs."""
        ledger = self.ledger
        pair, text = (
            (ledger.round, ledger.attempt),
            f"round {ledger.round}, attempt {ledger.attempt}",
        )
        if not self.plan.on_request or ledger.attempt >= MAX_ROUNDS:
            self._end(RunFailed(f"{text}: {reason}"), step)
            return
        self._updates.forget()
        step.commands.append(SweepRound(*pair))
        ledger.record(RequestFailed(*pair, f"{text}: {reason}"), step)

    def _aggregated(self, event: AggregationFinished | AggregationFailed, step: RoundStep) -> None:
        ledger = self.ledger
        pair = (event.round, event.attempt)
        if ledger.phase != "aggregating" or pair != (ledger.round, ledger.attempt):
            return
        if isinstance(event, AggregationFailed):
            self._abandon(event.reason, step)
            return
        self._updates.forget()
        self._gathering.begin(same_attempt=False)
        self.ledger.record(RoundCommitted(*pair, event.model), step)
        self._report(step)
        step.commands.append(SweepRound(*pair))
        self._evaluation.begin(step)
        if event.round < self.plan.rounds:
            self._start_if_ready(step)
        elif self._evaluation.awaited:
            self._arm_evaluation(step)
        else:
            self._end(RunCompleted(), step)

    # --- timers and the operator --------------------------------------------------------------

    def _timer(self, event: TimerFired, step: RoundStep) -> None:
        ledger = self.ledger
        if (event.round, event.attempt) != (ledger.round, ledger.attempt):
            return
        match event.timer:
            case "gather" | "rest" if ledger.phase == "gathering":
                self._gathering.fired(event.timer)
                self._start_if_ready(step, waited=True)
            case "return":
                self._return_armed = False
                self._close_if_complete(step, nobody_came=True)
            case "resend":
                self._resend(step)
            case "deadline":
                self._close_if_complete(step, deadline=True)
            case "evaluation" if ledger.phase == "evaluating":
                self._end(RunCompleted(), step)

    def _complete_if_evaluated(self, step: RoundStep) -> None:
        if self.ledger.phase == "evaluating" and not self._evaluation.awaited:
            self._end(RunCompleted(), step)

    def _operator(
        self,
        event: PauseRequested | ResumeRequested | StopRequested | CompletionReported,
        step: RoundStep,
    ) -> None:
        ledger = self.ledger
        match event:
            case PauseRequested() if ledger.status == "running":
                self.ledger.record(RunPaused(), step)
            case ResumeRequested() if ledger.status == "paused":
                self.ledger.record(RunResumed(), step)
                self._start_if_ready(step)
            case StopRequested() if ledger.phase != "ended":
                self._end(RunStopped(event.reason), step)
            case CompletionReported() if ledger.phase != "ended":
                self._end(RunStoppedEarly(event.reason), step)

    # --- small parts --------------------------------------------------------------------------

    def _order(self, device_id: str, step: RoundStep) -> None:
        step.commands.append(SendOrder(device_id, "train", self.ledger.round, self.ledger.attempt))

    def _resend(self, step: RoundStep) -> None:
        """Order again who is there, owes an answer and does nothing: its order was lost."""
        if self.ledger.phase not in {"collecting", "evaluating"}:
            return
        for device_id in self.ledger.cohort:
            if self._updates.owed_by(device_id) and self._roster.is_idle(device_id):
                self._order(device_id, step)
        for device_id in sorted(self._evaluation.awaited):
            if self._roster.is_idle(device_id):
                self._evaluation.send(device_id, step)
        self._arm("resend", RESEND_S, step)

    def _arm_collecting(self, step: RoundStep) -> None:
        self._arm("deadline", self.ledger.deadline_s or self.plan.deadline_s, step)
        self._arm("resend", RESEND_S, step)

    def _arm_evaluation(self, step: RoundStep) -> None:
        self._arm("evaluation", self.plan.evaluation_deadline_s, step)
        self._arm("resend", RESEND_S, step)

    def _arm(self, timer: str, seconds: float, step: RoundStep) -> None:
        step.commands.append(ArmTimer(timer, self.ledger.round, self.ledger.attempt, seconds))

    def _end(
        self, fact: RunCompleted | RunStoppedEarly | RunStopped | RunFailed, step: RoundStep
    ) -> None:
        self._updates.forget()
        if not isinstance(fact, RunStoppedEarly):
            self._best.judge(step, is_last=True)
        self.ledger.record(fact, step)
        step.commands.append(SweepRun())
