"""The laws of the two sans-IO machines, derived from the facts alone, beside the code under test.

``RoundLaws`` follows one run: it keeps its own books from the events that went in and the facts and
commands that came out, and says which law was broken. ``DeviceLaws`` does the same for a device.
The stateful suite and the world judge by the same laws.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeGuard

from fl_client.session import events as device
from fl_client.session.machine import DeviceSession
from fl_server.flows.commands import ArmTimer, SendReceipt
from fl_server.flows.events import (
    DeviceDeclined,
    DeviceJoined,
    DeviceLeft,
    FailureReported,
    Role,
    StopRequested,
    TimerFired,
)
from fl_server.flows.flow import Step
from fl_server.rounds.commands import (
    Aggregate,
    DiscardUpdate,
    FoldUpdate,
    ReportRound,
    SendOrder,
    SweepRound,
    SweepRun,
    TagBest,
    VerifyUpdate,
)
from fl_server.rounds.events import (
    AggregationFailed,
    AggregationFinished,
    CompletionReported,
    EvaluationReceived,
    Event,
    ResultReceived,
    RoundRequested,
    UpdateRejected,
    UpdateVanished,
    UpdateVerified,
)
from fl_server.rounds.facts import (
    EvaluationDeclined,
    EvaluationOrdered,
    EvaluationRecorded,
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
    UpdateAccepted,
    UpdateRefused,
    UpdateWithdrawn,
    VersionJudged,
)
from fl_server.rounds.gathering import LONGEST_REST_S
from fl_server.rounds.ledger import Ledger
from fl_server.rounds.machine import RESEND_S, RoundMachine
from fl_server.rounds.model import Model, Update
from fl_server.rounds.plan import Plan
from fl_server.selection import uniform
from tests.best_laws import BestBooks

Pair = tuple[int, int]


class Violation(AssertionError):
    """A law was broken; ``law`` is its short name."""

    def __init__(self, law: str, detail: object) -> None:
        super().__init__(f"{law}: {detail}")
        self.law = law


def require(truth: object, law: str, detail: object = "") -> None:
    """Raise Violation unless ``truth``."""
    if not truth:
        raise Violation(law, detail)


@dataclass
class RoundLaws:
    """One run's books. ``observe`` after every step, ``crashed`` when the server's memory is gone.

    What survives a crash is what was journalled; who is online, which timers are armed and which
    jobs are in flight do not.
    """

    plan: Plan
    shadow: Ledger
    pair: Pair = (1, 1)
    committed: int = 0
    paused: bool = False
    over: bool = False
    collecting: bool = False
    waiting: bool = False
    cohort: tuple[str, ...] = ()
    target: int = 0
    accepted: dict[str, Update] = field(default_factory=dict)
    answered: set[str] = field(default_factory=set)
    unusable: dict[str, str] = field(default_factory=dict)
    refused_before: set[str] = field(default_factory=set)
    repeated: bool = False
    deferred: set[str] = field(default_factory=set)
    excused: int = 0
    closed: tuple[str, ...] | None = None
    counted: dict[tuple[str, int, int], str] = field(default_factory=dict)
    evaluated: set[tuple[int, str]] = field(default_factory=set)
    evaluation_orders: set[tuple[int, str]] = field(default_factory=set)
    last_words: dict[tuple[str, int, int], str] = field(default_factory=dict)
    included: list[tuple[int, int, tuple[str, ...]]] = field(default_factory=list)
    # what a crash takes
    online: dict[str, tuple[Role, bool]] = field(default_factory=dict)
    left: set[str] = field(default_factory=set)
    armed: set[tuple[str, int, int]] = field(default_factory=set)
    verifying: dict[str, tuple[Pair, Update]] = field(default_factory=dict)
    folding: set[str] = field(default_factory=set)
    aggregating: set[Pair] = field(default_factory=set)
    evaluators_asked: set[str] = field(default_factory=set)
    removed: set[str] = field(default_factory=set)
    resting: set[str] = field(default_factory=set)
    silent: set[str] = field(default_factory=set)
    there_before: set[str] | None = None
    best: BestBooks = field(init=False)

    def __post_init__(self) -> None:
        self.best = BestBooks(self.plan)

    @classmethod
    def of(cls, plan: Plan, initial: Model, ledger: type[Ledger] = Ledger) -> RoundLaws:
        """Return empty books for a run whose machine keeps a ``ledger``."""
        books = cls(plan, ledger(plan.rounds, initial, on_request=plan.on_request))
        books.waiting = plan.on_request
        return books

    # --- what the owner says --------------------------------------------------------------------

    def crashed(self) -> None:
        """Forget what the server forgets."""
        self.online, self.left, self.armed = {}, set(), set()
        self.verifying, self.folding, self.aggregating = {}, set(), set()
        self.evaluators_asked = set()
        self.removed, self.resting, self.silent = set(), set(), set()
        self.there_before = None

    def observe(self, machine: RoundMachine, event: Event | None, step: Step) -> None:
        """Judge one step; ``event`` is None for ``resume()``."""
        self._before(event)
        was_over = self.over
        for fact in step.facts:
            require(not self.over, "an ended run decides nothing", fact)
            _FACTS[type(fact)](self, fact, event)
            if not isinstance(event, CompletionReported):
                broken = self.best.saw(fact, step, self.left)
                require(not broken, broken, fact)
            self.shadow.apply(fact)
        for command in step.commands:
            if self.over and not isinstance(command, _AFTER_THE_END):
                require(not was_over, "an ended run only answers and sweeps", command)
                require(not isinstance(command, ArmTimer), "an ended run arms nothing", command)
            law = _COMMANDS.get(type(command))
            # an attempt may be abandoned by the update that was its last answer
            swept = [(each.round, each.attempt) for each in step.commands if _is_sweep(each)]
            if isinstance(command, FoldUpdate) and (
                self.over or (command.round, command.attempt) in swept
            ):
                continue
            if law is not None:
                law(self, command, event)
        self._answers(event, step)
        self._follow_ups(step)
        self._standing(machine)

    # --- events ---------------------------------------------------------------------------------

    def _before(self, event: Event | None) -> None:
        self.silent.discard(
            "" if isinstance(event, DeviceLeft | _OF_JOBS) else getattr(event, "device_id", "")
        )
        match event:
            case DeviceJoined():
                if self.online.get(event.device_id, ("", False))[1] is False:
                    self.resting.discard(event.device_id)
                self.online[event.device_id] = (event.role, event.accepting)
                self.left.discard(event.device_id)
                self.removed.discard(event.device_id)
            case DeviceLeft():
                self.online.pop(event.device_id, None)
                self.left.add(event.device_id)
                self.evaluators_asked.discard(event.device_id)
                if event.for_good:
                    self.removed.add(event.device_id)
            case DeviceDeclined(action="evaluate") if event.round == self.committed:
                self.evaluators_asked.discard(event.device_id)
            case TimerFired():
                self.armed.discard((event.timer, event.round, event.attempt))
                gathering = not self.collecting and self.closed is None
                if gathering and self._is_now(event, TimerFired, "rest"):
                    # one that fires while a round collects is of those who declined before it
                    self.resting.clear()
                if self._is_now(event, TimerFired, "deadline") and self.collecting:
                    self.silent |= self._here() - set(self.verifying)
            case AggregationFinished() | AggregationFailed():
                self.aggregating.discard((event.round, event.attempt))

    def _candidates(self) -> list[str]:
        there = [name for name, state in self.online.items() if state == ("trainer", True)]
        return [name for name in there if name not in self.resting]

    def _invited(self) -> int:
        return math.ceil(self.plan.cohort_size * self.plan.over_selection)

    def _owing(self) -> set[str]:
        return set(self.cohort) - self.answered - set(self.accepted) - self.removed

    def _here(self) -> set[str]:
        """Return who owes an update and may send it without coming back first."""
        return self._owing() - (self.left - set(self.verifying))

    def _pending(self) -> set[str]:
        return self._here() - self.silent

    def _is_now(self, event: object, kind: type, timer: str = "") -> bool:
        pair = (getattr(event, "round", 0), getattr(event, "attempt", 0))
        return (
            isinstance(event, kind) and pair == self.pair and getattr(event, "timer", "") == timer
        )

    # --- facts ----------------------------------------------------------------------------------

    def _next(self, pair: Pair) -> None:
        require(pair > self.pair, "rounds and attempts only go on", (self.pair, pair))
        if pair[0] != self.pair[0]:
            self.excused, self.resting = 0, set()
        self.deferred = set()
        self.pair = pair
        self.cohort, self.target, self.closed, self.collecting = (), 0, None, False
        self.accepted, self.answered, self.unusable = {}, set(), {}
        self.verifying, self.folding = {}, set()

    def _opens(self, fact: RoundOpened, event: Event | None) -> None:
        require(isinstance(event, RoundRequested), "no round opens by itself", event)
        asked = (getattr(event, "round", 0), getattr(event, "base", None))
        require((fact.round, fact.base) == asked, "opened is what was requested", fact)
        pair = (fact.round, fact.attempt)
        require(pair >= self.pair, "rounds and attempts only go on", (self.pair, pair))
        require(not self.collecting and self.closed is None, "one round at a time", fact)
        self.pair, self.committed, self.waiting = pair, fact.base.version, False
        self.excused, self.resting, self.refused_before = 0, set(), set()

    def _started(self, fact: RoundStarted, event: Event | None) -> None:
        require(not self.waiting, "a round that nobody requested", fact)
        plan, candidates = self.plan, self._candidates()
        require((fact.round, fact.attempt) == self.pair, "a fact of another attempt", fact)
        require(not self.collecting and self.closed is None, "a round starts once", fact)
        require(not self.paused, "a paused run starts no round", fact)
        known = self.there_before
        nobody_misses = known is not None and not (
            known - self.resting - self.removed - set(candidates)
        )
        timer = self._is_now(event, TimerFired, "gather") or self._is_now(event, TimerFired, "rest")
        enough = len(candidates) >= plan.quorum
        gathered = enough and (timer or nobody_misses)
        require(len(candidates) >= self._invited() or gathered, "started too early", fact)
        heard = [name for name in candidates if name not in self.silent]
        self.there_before = set(candidates)
        chosen = uniform.select(
            heard if len(heard) >= self._invited() else candidates,
            self._invited(),
            seed=plan.seed,
            round_number=fact.round,
            attempt=fact.attempt,
        )
        require(fact.cohort == chosen, "the cohort is a function of what it may see", fact)
        require(fact.target == min(plan.cohort_size, len(chosen)), "the target", fact)
        self.cohort, self.target, self.collecting = fact.cohort, fact.target, True

    def _accepts(self, fact: UpdateAccepted, event: Event | None) -> None:
        name = fact.device_id
        require((fact.round, fact.attempt) == self.pair, "a fact of another attempt", fact)
        require(self.collecting, "only an open round counts updates", fact)
        require(name in self.cohort, "accepted is within the cohort", fact)
        require(name not in self.accepted, "nothing is counted twice", fact)
        require(name not in self.answered, "a refused device is not counted", fact)
        require(
            isinstance(event, UpdateVerified) and event.update == fact.update,
            "only a verified update counts",
            (event, fact),
        )
        self.accepted[name] = fact.update
        self.counted[(name, *self.pair)] = fact.update.header_sha256

    def _refuses(self, fact: UpdateRefused | OrderDeclined, event: Event | None) -> None:
        name = fact.device_id
        require((fact.round, fact.attempt) == self.pair, "a fact of another attempt", fact)
        require(self.collecting and name in self.cohort, "only who owes can be refused", fact)
        require(name not in self.accepted, "what is counted is not refused", fact)
        cause = UpdateRejected if isinstance(fact, UpdateRefused) else DeviceDeclined
        at_fault = isinstance(event, ResultReceived) and event.fault == fact.reason != ""
        require(isinstance(event, cause) or at_fault, "a refusal has a cause", (event, fact))
        self.answered.add(name)
        declined = isinstance(event, DeviceDeclined)
        in_vain = getattr(fact, "unusable", True) or getattr(fact, "permanent", False)
        said = (event.unusable or event.permanent) if declined else True
        require(in_vain == said, "in vain or not now", fact)
        if in_vain:
            self.unusable[name] = fact.reason
        else:
            self.deferred.add(name)
            self.resting.add(name)

    def _is_excused(self) -> bool:
        """Whether the attempt wants a quorum only because devices declined it for now."""
        would_do = len(self.accepted) + len(self.deferred) >= self.plan.quorum
        return self.closed is None and bool(self.deferred) and would_do

    def _refused_all(self) -> set[str]:
        """Return why every update of the attempt was refused, without words that have digits."""
        if not self.collecting or set(self.unusable) != set(self.cohort):
            return set()
        return {
            " ".join(word for word in reason.split() if not set(word) & set("0123456789"))
            for reason in self.unusable.values()
        }

    def _withdraws(self, fact: UpdateWithdrawn, event: Event | None) -> None:
        require(self.collecting, "only an open round withdraws", fact)
        require(fact.device_id in self.accepted, "withdrawn is what was counted", fact)
        require(self._is_now(event, UpdateVanished), "withdrawn is what vanished", event)
        del self.accepted[fact.device_id]
        self.folding.discard(fact.device_id)
        self.last_words.pop((fact.device_id, *self.pair), None)
        del self.counted[(fact.device_id, *self.pair)]

    def _closes(self, fact: RoundClosed, event: Event | None) -> None:
        require((fact.round, fact.attempt) == self.pair, "a fact of another attempt", fact)
        require(self.collecting, "a round closes once", fact)
        require(fact.included == tuple(sorted(self.accepted)), "included is accepted", fact)
        require(set(fact.included) <= set(self.cohort), "included is within the cohort", fact)
        require(len(fact.included) >= self.plan.quorum, "no round below the quorum", fact)
        deadline = self._is_now(event, TimerFired, "deadline")
        full = len(fact.included) >= self.target
        require(full or deadline or not self._pending(), "closed too early", fact)
        self.closed, self.collecting = fact.included, False

    def _abandons(self, fact: RoundAbandoned, event: Event | None) -> None:
        require((fact.round, fact.attempt) == self.pair, "a fact of another attempt", fact)
        excused = self._is_excused() and not isinstance(event, RoundRequested)
        require(fact.excused == excused, "excused is what declined for now", fact)
        spent = fact.attempt - self.excused >= self.plan.max_attempts
        asked = isinstance(event, RoundRequested)
        require(excused or asked or not spent, "the last attempt is the last", fact)
        self.excused += excused
        refused = self._refused_all()
        same = refused and refused == self.refused_before
        require(not same, "what is always refused is not tried for ever", fact)
        if isinstance(event, RoundRequested):
            other = (event.round, event.base) != (fact.round, self.shadow.model)
            require(other, "a round that is requested again goes on", event)
        elif self.closed is None:
            deadline = self._is_now(event, TimerFired, "deadline")
            returned = self._is_now(event, TimerFired, "return") and not self._here()
            over = deadline or refused or returned or not self._owing()
            require(over, "abandoned too early", event)
            require(len(self.accepted) < self.plan.quorum, "a quorum is not abandoned", fact)
        else:
            cause = self._is_now(event, AggregationFailed) or self._is_now(event, UpdateVanished)
            require(cause, "abandoned without a cause", event)
        self._next((fact.round, fact.attempt + 1))
        self.refused_before = refused

    def _request_fails(self, fact: RequestFailed, event: Event | None) -> None:
        require(self.plan.on_request, "only a requested round is given up", fact)
        require((fact.round, fact.attempt) == self.pair, "a fact of another attempt", fact)
        spent = fact.attempt - self.excused >= self.plan.max_attempts and not self._is_excused()
        refused = self._refused_all()
        same = bool(refused) and refused == self.refused_before
        require(spent or same, "a request fails after its last attempt", fact)
        self._next((fact.round, fact.attempt + 1))
        self.waiting = True

    def _commits(self, fact: RoundCommitted, event: Event | None) -> None:
        require(fact.round == self.committed + 1, "each round is committed once, in order", fact)
        self.waiting = self.plan.on_request
        require((fact.round, fact.attempt) == self.pair, "a fact of another attempt", fact)
        require(self.closed is not None, "committed is what was closed", fact)
        require(self._is_now(event, AggregationFinished), "committed is what was made", event)
        require(fact.model == getattr(event, "model", None), "committed is what was made", fact)
        require(fact.model.version == fact.round, "a version is its round", fact)
        self.included.append((*self.pair, self.closed or ()))
        self.committed = fact.round
        self.evaluators_asked, self.refused_before = set(), set()
        if self.committed < self.plan.rounds:
            self._next((fact.round + 1, 1))
        else:
            self.closed, self.collecting, self.cohort = None, False, ()
            self.accepted, self.answered = {}, set()

    def _evaluates(self, fact: EvaluationRecorded, event: Event | None) -> None:
        require(1 <= fact.round <= self.committed, "only a committed version is evaluated", fact)
        where = (fact.round, fact.device_id)
        require(where in self.evaluation_orders, "only what was ordered is measured", fact)
        require(where not in self.evaluated, "an evaluation counts once", fact)
        self.evaluated.add(where)

    def _evaluators(self, fact: EvaluationOrdered, event: Event | None) -> None:
        require(1 <= fact.round == self.committed, "the latest version is evaluated", fact)
        require(fact.devices, "somebody is ordered", fact)

    def _not_evaluated(self, fact: EvaluationDeclined, event: Event | None) -> None:
        where = (fact.round, fact.device_id)
        require(where in self.evaluation_orders, "only what was ordered is declined", fact)
        require(where not in self.evaluated, "what was measured is not declined", fact)

    def _pauses(self, fact: RunPaused | RunResumed, event: Event | None) -> None:
        self.paused = isinstance(fact, RunPaused)

    def _judges(self, fact: VersionJudged, event: Event | None) -> None:
        require(fact.round <= self.committed, "only a committed version is judged", fact)

    def _ends(self, fact: Fact, event: Event | None) -> None:
        match fact:
            case RunStoppedEarly():
                require(self.committed < self.plan.rounds, "early is before the last", fact)
            case RunCompleted():
                done = self.committed == self.plan.rounds
                require(done, "complete is every round committed", self.committed)
                timer = self._is_now(event, TimerFired, "evaluation")
                missing = {
                    name
                    for name in self.evaluators_asked
                    if (self.committed, name) not in self.evaluated
                }
                require(timer or not missing, "the last evaluation is awaited", missing)
            case RunStopped():
                require(isinstance(event, StopRequested), "only an operator stops", event)
            case RunFailed():
                counted = self.pair[1] - self.excused
                spent = counted >= self.plan.max_attempts and not self._is_excused()
                told = isinstance(event, FailureReported)
                refused = self._refused_all()
                self.repeated = bool(refused) and refused == self.refused_before
                cause = spent or told or self.repeated
                require(cause, "a run fails only after its last attempt", fact)
        self.over, self.collecting, self.closed = True, False, None
        self.accepted = {}

    # --- commands -------------------------------------------------------------------------------

    def _orders(self, command: SendOrder, event: Event | None) -> None:
        name = command.device_id
        if command.action == "evaluate":
            require(command.round == self.committed > 0, "evaluate the latest version", command)
            self.evaluators_asked.add(name)
            self.evaluation_orders.add((command.round, name))
            return
        require((command.round, command.attempt) == self.pair, "no stale order", command)
        owes = name in self.cohort and name not in self.accepted and name not in self.answered
        require(self.collecting and owes, "only who owes an update is ordered", command)

    def _verifies(self, command: VerifyUpdate, event: Event | None) -> None:
        pair = (command.round, command.attempt)
        require(self.collecting and pair == self.pair, "no stale check", command)
        require(command.device_id not in self.verifying, "one check at a time", command)
        self.verifying[command.device_id] = (pair, command.update)

    def _folds(self, command: FoldUpdate, event: Event | None) -> None:
        require((command.round, command.attempt) == self.pair, "no stale sum", command)
        counted = self.accepted.get(command.device_id) == command.update
        require(counted, "only the accepted is added", command)
        require(command.device_id not in self.folding, "nothing is added twice", command)
        self.folding.add(command.device_id)

    def _aggregates(self, command: Aggregate, event: Event | None) -> None:
        require((command.round, command.attempt) == self.pair, "no stale sum", command)
        require(command.included == self.closed, "made of what was closed", command)
        self.aggregating.add(self.pair)

    def _discards(self, command: DiscardUpdate, event: Event | None) -> None:
        kept = {update.key for update in self.accepted.values()}
        require(command.key not in kept, "what counts is not deleted", command)

    def _sweeps(self, command: SweepRound, event: Event | None) -> None:
        spent = (command.round, command.attempt)
        done = spent < self.pair or (command.round == self.committed)
        require(done, "what serves is not swept", command)

    def _sweeps_all(self, command: SweepRun, event: Event | None) -> None:
        require(self.over, "a living run is not swept", command)

    def _arms(self, command: ArmTimer, event: Event | None) -> None:
        require((command.round, command.attempt) == self.pair, "no stale timer", command)
        seconds = {
            "gather": self.plan.gather_s,
            "deadline": self.plan.deadline_s,
            "evaluation": self.plan.evaluation_deadline_s,
            "return": self.plan.gather_s,
            "resend": RESEND_S,
            "rest": min(max(command.seconds, self.plan.deadline_s), LONGEST_REST_S),
        }[command.timer]
        require(command.seconds == seconds, "a timer is armed in full", command)
        timer = (command.timer, command.round, command.attempt)
        again = command.timer == "resend"  # of the last round, from collecting to evaluating
        require(again or timer not in self.armed, "a timer is armed once", command)
        self.armed.add(timer)

    def _follow_ups(self, step: Step) -> None:
        """Some facts must be followed by a command in the same step."""
        for fact in step.facts:
            match fact:
                case UpdateWithdrawn():
                    asked = any(
                        isinstance(c, SendOrder) and c.device_id == fact.device_id
                        for c in step.commands
                    )
                    require(asked, "what was withdrawn is asked for again", fact)
                case RoundCommitted() | RoundAbandoned() | RequestFailed():
                    swept = SweepRound(fact.round, fact.attempt) in step.commands
                    require(swept, "a spent round is swept", fact)
                case RunCompleted() | RunStoppedEarly() | RunStopped() | RunFailed():
                    require(SweepRun() in step.commands, "an ended run is swept", fact)

    # --- receipts -------------------------------------------------------------------------------

    def _answers(self, event: Event | None, step: Step) -> None:
        """One receipt for each result that is not being checked, and one for each check."""
        receipts = [c for c in step.commands if isinstance(c, SendReceipt)]
        dues: dict[type, Callable[..., int]] = {
            ResultReceived: self._due_to_result,
            UpdateVerified: self._due_to_check,
            UpdateRejected: self._due_to_check,
            EvaluationReceived: lambda *_: 1,
        }
        due = dues[type(event)](event, step) if type(event) in dues else 0
        require(len(receipts) == due, "one receipt for one result", (event, receipts))
        for receipt in receipts:
            where = (receipt.device_id, receipt.round, receipt.attempt)
            asked = (event.device_id, event.round, event.attempt)  # type: ignore[union-attr]
            require(where == asked, "a receipt answers its result", receipt)
            if receipt.action == "train":
                self._last_word(receipt, event)
                self._leaves_nothing(receipt, event, step)

    def _due_to_result(self, event: ResultReceived, step: Step) -> int:
        checks = any(isinstance(command, VerifyUpdate) for command in step.commands)
        in_flight = self.verifying.get(event.device_id, ((0, 0), None))[0]
        open_now = self.collecting and (event.round, event.attempt) == self.pair
        return 0 if checks or (open_now and in_flight == self.pair) else 1

    def _due_to_check(self, event: UpdateVerified | UpdateRejected, step: Step) -> int:
        pair = (event.round, event.attempt)
        mine = self.verifying.get(event.device_id)
        if mine == (pair, event.update):
            del self.verifying[event.device_id]
            return 1
        return 1 if pair != self.pair or not self.collecting else 0

    def _leaves_nothing(self, receipt: SendReceipt, event: Event | None, step: Step) -> None:
        """An object that came after its attempt's sweep has no other moment to be deleted."""
        serves = (receipt.round, receipt.attempt) == self.pair and (
            self.collecting or self.closed is not None
        )
        key = event.update.key  # type: ignore[union-attr]
        sweeps = (SweepRun(), SweepRound(receipt.round, receipt.attempt))
        swept = any(command in sweeps for command in step.commands)
        discarded = swept or DiscardUpdate(key) in step.commands
        deleted = serves or receipt.status == "unknown" or discarded
        require(deleted, "a late object is deleted", receipt)

    def _last_word(self, receipt: SendReceipt, event: Event | None) -> None:
        """Accepted stays accepted, and nothing becomes accepted later, for who reports honestly."""
        if getattr(event, "fault", ""):
            return
        where = (receipt.device_id, receipt.round, receipt.attempt)
        counted = receipt.status == "accepted"
        if counted:
            known = self.counted.get(where)
            sent = event.update.header_sha256  # type: ignore[union-attr]
            require(known == sent, "accepted is what was journalled", receipt)
        other_bytes = self.last_words.get(where) == "accepted" and receipt.status == "refused"
        if other_bytes:
            return
        before = self.last_words.setdefault(where, receipt.status)
        agree = (before == "accepted") == counted
        require(agree, "the last word stays", (before, receipt))

    # --- what holds between steps ---------------------------------------------------------------

    def _standing(self, machine: RoundMachine) -> None:
        ledger, plan, pair = machine.ledger, self.plan, self.pair
        require(vars(ledger) == vars(self.shadow), "the state is the fold of its facts", ledger)
        if self.over:
            return
        broken = self.best.broken(self.left, self.committed)
        require(not broken, broken, ledger)
        books = (*pair, self.cohort, self.accepted, self.committed)
        theirs = (
            ledger.round,
            ledger.attempt,
            ledger.cohort,
            ledger.accepted,
            ledger.model.version,
        )
        require(books == theirs, "the books agree", (books, theirs))
        if self.collecting:
            enough = len(self.accepted) >= plan.quorum
            require(len(self.accepted) < self.target, "a full round closes", self.accepted)
            require(not enough or self._pending(), "closes when all alive answered", ledger)
            require(not self._refused_all(), "what was refused as a whole is over", ledger)
            require(("deadline", *pair) in self.armed, "an open round has a deadline", self.armed)
            require(("resend", *pair) in self.armed, "a lost order is sent again", self.armed)
            require(self._owing(), "an attempt ends when all have answered", ledger)
            returns = self._here() or ("return", *pair) in self.armed
            require(returns, "nobody is waited for only for a while", ledger)
        elif self.closed is not None:
            require(pair in self.aggregating, "a closed round is being made", ledger)
        elif self.committed == plan.rounds:
            require(("evaluation", *pair) in self.armed, "the last wait has an end", self.armed)
        elif not self.paused and not self.waiting:
            online = len(self._candidates())
            require(online < self._invited(), "a full cohort starts", self.online)
            waits = ("gather", *pair) in self.armed
            require(online < plan.quorum or waits, "a quorum does not wait for ever", self.armed)
            there = [name for name, state in self.online.items() if state == ("trainer", True)]
            rests = online < plan.quorum <= len(there)
            asked = not rests or ("rest", *pair) in self.armed
            require(asked, "who declined for now is asked again", self.armed)
        missing = set(self.accepted) - self.folding
        require(not missing, "what counts is being added", missing)


_FACTS: dict[type, Callable[..., None]] = {
    RoundOpened: RoundLaws._opens,
    RoundStarted: RoundLaws._started,
    UpdateAccepted: RoundLaws._accepts,
    UpdateRefused: RoundLaws._refuses,
    OrderDeclined: RoundLaws._refuses,
    UpdateWithdrawn: RoundLaws._withdraws,
    RoundClosed: RoundLaws._closes,
    RoundAbandoned: RoundLaws._abandons,
    RequestFailed: RoundLaws._request_fails,
    RoundCommitted: RoundLaws._commits,
    EvaluationOrdered: RoundLaws._evaluators,
    EvaluationDeclined: RoundLaws._not_evaluated,
    EvaluationRecorded: RoundLaws._evaluates,
    RunPaused: RoundLaws._pauses,
    RunResumed: RoundLaws._pauses,
    VersionJudged: RoundLaws._judges,
    RunCompleted: RoundLaws._ends,
    RunStoppedEarly: RoundLaws._ends,
    RunStopped: RoundLaws._ends,
    RunFailed: RoundLaws._ends,
}
_COMMANDS: dict[type, Callable[..., None]] = {
    SendOrder: RoundLaws._orders,
    VerifyUpdate: RoundLaws._verifies,
    FoldUpdate: RoundLaws._folds,
    Aggregate: RoundLaws._aggregates,
    DiscardUpdate: RoundLaws._discards,
    SweepRound: RoundLaws._sweeps,
    SweepRun: RoundLaws._sweeps_all,
    ArmTimer: RoundLaws._arms,
}
_OF_JOBS = UpdateVerified | UpdateRejected | UpdateVanished
_AFTER_THE_END = (SendReceipt, DiscardUpdate, SweepRun, TagBest, ReportRound)


@dataclass
class DeviceLaws:
    """One device's books: what it has on disk and what it knows."""

    known_epoch: int = 0
    kept: dict[device.JobKey, device.Job] = field(default_factory=dict)
    maybe_stored: set[device.JobKey] = field(default_factory=set)
    answered: set[device.JobKey] = field(default_factory=set)
    said: device.Presence = "ready"

    def crashed(self) -> None:
        """Forget what is not on disk."""
        self.known_epoch = max((job.order.epoch for job in self.kept.values()), default=0)
        self.said = "ready"

    def hear(self, event: device.Event) -> bool:
        """Take note of an event; returns whether it is an order of an old epoch."""
        match event:
            case device.OrderArrived(order=order):
                if order.epoch < self.known_epoch:
                    return True
                self.known_epoch = order.epoch
            case device.ServerChanged(epoch=epoch):
                self.known_epoch = max(self.known_epoch, epoch)
            case device.ReceiptArrived(receipt=receipt):
                self.answered.add(device.JobKey.of(receipt))
        return False

    def observe(
        self,
        session: DeviceSession,
        event: device.Event | None,
        commands: list[device.Command],
    ) -> None:
        """Judge one step's commands as a whole; ``event`` is None for ``restore``."""
        if event is not None and self.hear(event):
            require(not commands, "no order of an old epoch is obeyed", (event, commands))
        if not commands:
            require(self.said == session.presence, "presence says what is so", self.said)
            return
        said = self.said
        for place, command in enumerate(commands):
            match command:
                case device.PublishState(presence=said):
                    pass
                case device.CancelJob(key=key) if key in self.maybe_stored:
                    rest = commands[place:]
                    reported = any(
                        isinstance(after, device.SendResult) and after.job.key == key
                        for after in rest
                    )
                    require(reported, "what may lie in the store is reported", commands)
        self.said = said
        require(said == session.presence, "presence says what is so", (said, session.presence))
        if session.active is None:
            waiting = [job for job in session.waiting if not _state_is_open(job, session)]
            require(not waiting, "an idle device takes the next order", waiting)
        for job in session.reporting.values():
            require(job.stage == "reporting", "a reported job is reporting", job)

    def carry_out(self, command: device.Command) -> None:
        """Judge one command at the moment that it is carried out, and keep the disk's books."""
        match command:
            case device.KeepJob(job=job):
                self.kept[job.key] = job
            case device.FetchModel(job=job) | device.DoWork(job=job):
                require(job.key not in self.kept, "a kept result is not made again", job.key)
                self.answered.discard(job.key)
            case device.UploadUpdate(job=job):
                on_disk = self.kept.get(job.key)
                kept = on_disk is not None and on_disk.outcome == job.outcome
                require(kept, "kept before it is uploaded", job)
                self.maybe_stored.add(job.key)
            case device.SendResult(job=job):
                on_disk = self.kept.get(job.key)
                kept = on_disk is not None and on_disk.stage == "reporting"
                require(kept, "kept before it is reported", job)
                require(job.outcome is not None, "a result has an outcome", job)
            case device.ForgetJob(key=key):
                if key in self.kept:
                    require(key in self.answered, "kept until the receipt", key)
                self.kept.pop(key, None)
                self.maybe_stored.discard(key)


def _is_sweep(command: object) -> TypeGuard[SweepRound]:
    return isinstance(command, SweepRound)


def _state_is_open(job: device.Job, session: DeviceSession) -> bool:
    """Whether a result of the job's run, which left a state, waits for its receipt."""
    runs = {key.run_id for key in session.unanswered}
    return job.key.action != "evaluate" and job.key.run_id in runs
