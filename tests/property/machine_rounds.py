"""Every ordering of what can happen to a run, as a hypothesis state machine.

The environment below is the weakest that the server's shell may be: it delivers anything that was
ever sent, in any order, any number of times or never, and forgets at a crash what a crash forgets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from fl_server.flows.commands import ArmTimer, SendReceipt
from fl_server.flows.events import (
    Action,
    DeviceBusy,
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
from fl_server.rounds.commands import Aggregate, DiscardUpdate, FoldUpdate, SendOrder, VerifyUpdate
from fl_server.rounds.events import (
    AggregationFailed,
    AggregationFinished,
    EvaluationReceived,
    Event,
    ResultReceived,
    UpdateRejected,
    UpdateVanished,
    UpdateVerified,
)
from fl_server.rounds.facts import Fact, RunFailed
from fl_server.rounds.machine import RoundMachine
from fl_server.rounds.model import Model, Update
from fl_server.rounds.plan import BestRule, Plan
from tests.laws import RoundLaws, require

TRAINERS = ("d1", "d2", "d3", "d4", "d5")
DEVICES = (*TRAINERS, "e1")
INITIAL = Model(0, "g/0", hashlib.sha256(b"0").hexdigest(), 100)
ROUNDS = 2
LIVELY_ATTEMPTS = 10_000
CALM_STEPS = 400

MakeMachine = Callable[[Plan, Model, Iterable[Fact]], RoundMachine]
pick = st.integers(0, 1 << 16)


def update_of(device_id: str, round_number: int, attempt: int, variant: int = 0) -> Update:
    """Return the update that a device uploads; ``variant`` 1 has other bytes under the same key."""
    key = f"u/{round_number}/{attempt}/{device_id}"
    header = hashlib.sha256(f"{key}/{variant}".encode()).hexdigest()
    return Update(key, 1000, header, 10)


plans = st.builds(
    lambda cohort, slack, over, every, where, attempts, seed, best: Plan(
        "run",
        ROUNDS + (best is not None),
        cohort_size=cohort,
        quorum=max(1, cohort - slack),
        over_selection=over,
        evaluate_every=every,
        evaluate_on=where,
        max_attempts=attempts,
        seed=seed,
        best=best,
    ),
    cohort=st.integers(2, 5),
    slack=st.integers(0, 2),
    over=st.sampled_from([1.0, 1.0, 1.3]),
    every=st.integers(1, 2),
    where=st.sampled_from(["evaluators", "devices", "none"]),
    attempts=st.sampled_from([2, LIVELY_ATTEMPTS, LIVELY_ATTEMPTS]),
    seed=st.integers(0, 3),
    best=st.sampled_from(
        [
            *[None] * 4,
            BestRule("accuracy", min_delta=0.1, patience=1),
            BestRule("accuracy", lower=True, patience=2),
        ]
    ),
)
REASONS = st.sampled_from(["chunk 3 is damaged", "parameter {} is not finite"])
THEN = ["leave", "report and leave", "are checked", "deadline"]


@dataclass
class InFlight:
    """What the server's shell has under way; a crash empties it."""

    timers: list[ArmTimer] = field(default_factory=list)
    checks: list[VerifyUpdate] = field(default_factory=list)
    folds: list[FoldUpdate] = field(default_factory=list)
    sums: list[Aggregate] = field(default_factory=list)

    def take(self, step: Step) -> None:
        """Start what the step's commands ask for."""
        for command in step.commands:
            match command:
                case ArmTimer():
                    self.timers.append(command)
                case VerifyUpdate():
                    self.checks.append(command)
                case FoldUpdate():
                    self.folds.append(command)
                case Aggregate():
                    self.sums.append(command)


class Rounds(RuleBasedStateMachine):
    """The search. Subclasses put another machine in ``make`` to plant a bug."""

    make: MakeMachine = RoundMachine
    in_vain = False  # whether whole attempts are refused; a few of them end a run
    broken = True  # until the first step went well, and from a broken law on

    @initialize(
        plan=plans,
        online=st.just(set(DEVICES)) | st.sets(st.sampled_from(DEVICES)),
        in_vain=st.sampled_from([True, False, False]),
    )
    def begin(self, plan: Plan, online: set[str], in_vain: bool) -> None:
        self.plan, self.in_vain = plan, in_vain
        self.machine = type(self).make(plan, INITIAL, ())
        self.laws = RoundLaws.of(plan, INITIAL, type(self.machine.ledger))
        self.facts: list[Fact] = []
        self.flying = InFlight()
        self.past: list[Event] = []
        self.orders: dict[str, list[SendOrder]] = {name: [] for name in DEVICES}
        self.sent: list[ResultReceived] = []
        self.take(None, self.machine.resume())
        for device_id in sorted(online):
            self.join(device_id, True)

    # --- the door -------------------------------------------------------------------------------

    def give(self, event: Event) -> None:
        self.broken = True
        self.take(event, self.machine.handle(event))

    def take(self, event: Event | None, step: Step) -> None:
        self.facts += step.facts
        self.broken = True
        self.laws.observe(self.machine, event, step)
        self.broken = False
        self.flying.take(step)
        for command in step.commands:
            if isinstance(command, SendOrder):
                self.orders[command.device_id].append(command)

    # --- devices --------------------------------------------------------------------------------

    @rule(device_id=st.sampled_from(DEVICES), accepting=st.sampled_from([True, True, False]))
    def join(self, device_id: str, accepting: bool) -> None:
        role: Role = "evaluator" if device_id == "e1" else "trainer"
        self.give(DeviceJoined(device_id, role, accepting))

    @rule()
    def all_join(self) -> None:
        for device_id in DEVICES:
            self.join(device_id, True)

    @rule(device_id=st.sampled_from(DEVICES))
    def leave(self, device_id: str) -> None:
        self.give(DeviceLeft(device_id))

    @rule(device_id=st.sampled_from(DEVICES), choice=st.integers(0, 3))
    def is_revoked(self, device_id: str, choice: int) -> None:
        if choice == 0:
            self.give(DeviceLeft(device_id, for_good=True))

    @rule(device_id=st.sampled_from(DEVICES))
    def works(self, device_id: str) -> None:
        if device_id in self.laws.online:
            self.give(DeviceBusy(device_id))

    def an_order(self, device_id: str, choice: int, action: Action) -> SendOrder | None:
        """Return one of the orders that the device ever got, the last one most often."""
        got = [order for order in self.orders[device_id] if order.action == action]
        if not got:
            return None
        return got[-1] if choice % 4 else got[choice // 4 % len(got)]

    @rule(device_id=st.sampled_from(TRAINERS), choice=pick, variant=st.sampled_from([0, 0, 0, 1]))
    def result(self, device_id: str, choice: int, variant: int) -> None:
        order = self.an_order(device_id, choice, "train")
        if order is not None:
            update = update_of(device_id, order.round, order.attempt, variant)
            self.sent.append(ResultReceived(device_id, order.round, order.attempt, update))
            self.give(self.sent[-1])

    @precondition(lambda self: self.laws.collecting)
    @rule(checked=st.sampled_from([True, True, False]))
    def all_report(self, checked: bool) -> None:
        for device_id in self.laws.cohort:
            self.result(device_id, 1, 0)
        while checked and self.flying.checks:
            self.verified(0)

    @precondition(lambda self: self.laws.collecting)
    @rule(missing=st.integers(0, 2), then=st.sampled_from(THEN))
    def some_report(self, missing: int, then: str) -> None:
        """All but a few of the cohort are counted; the others leave, or are still being checked."""
        cohort, pair = self.laws.cohort, self.laws.pair
        counted, others = cohort[missing:], cohort[:missing]
        for device_id in cohort if then in {"are checked", "report and leave"} else counted:
            self.result(device_id, 1, 0)
        for check in [c for c in self.flying.checks if (c.round, c.attempt) == pair]:
            if check.device_id in counted and check in self.flying.checks:
                self.verified(self.flying.checks.index(check))
        if then in {"leave", "report and leave"}:
            for device_id in others:
                self.leave(device_id)
        elif then == "deadline":
            self.deadline(True)

    @precondition(lambda self: self.sent)
    @rule(choice=pick)
    def duplicate(self, choice: int) -> None:
        self.give(self.sent[choice % len(self.sent)])

    @rule(choice=pick, device_id=st.sampled_from(TRAINERS))
    def uninvited(self, device_id: str, choice: int) -> None:
        """A result that nobody ordered, of the present attempt or of one before."""
        ledger = self.machine.ledger
        if not self.laws.cohort:
            return
        attempt = max(1, ledger.attempt - choice % 2)
        update = update_of(device_id, ledger.round, attempt)
        if any(sent.update == update for sent in self.sent) or device_id not in ledger.cohort:
            self.give(ResultReceived(device_id, ledger.round, attempt, update))

    @rule(device_id=st.sampled_from(DEVICES), choice=pick, unusable=st.booleans())
    def decline(self, device_id: str, choice: int, unusable: bool) -> None:
        action: Action = "evaluate" if device_id == "e1" or choice % 3 == 0 else "train"
        order = self.an_order(device_id, choice, action)
        if order is not None:
            place = (device_id, action, order.round, order.attempt)
            in_vain = unusable and self.in_vain
            kinds = {"unusable" if choice % 2 else "permanent": in_vain}
            self.give(DeviceDeclined(*place, "busy", **kinds))

    @precondition(lambda self: self.laws.collecting)
    @rule(likely=st.sampled_from([True, False, False]))
    def all_decline_for_now(self, likely: bool) -> None:
        pair = self.laws.pair
        for device_id in sorted(self.laws._pending()) if likely else ():
            if any((o.round, o.attempt) == pair for o in self.orders[device_id]):
                self.give(DeviceDeclined(device_id, "train", *pair, "too hot"))

    @rule(
        device_id=st.sampled_from(DEVICES), version=st.integers(1, ROUNDS + 1), says=st.booleans()
    )
    def nobody_ordered_this(self, device_id: str, version: int, says: bool) -> None:
        """A device measures a version, or declines to, as it was not asked to."""
        if version in [o.round for o in self.orders[device_id] if o.action == "evaluate"]:
            return
        if says:
            self.give(EvaluationReceived(device_id, version, 1, 1 << 40, {"accuracy": -1e300}))
        else:
            self.give(DeviceDeclined(device_id, "evaluate", version, 1, "no", permanent=True))

    @precondition(lambda self: self.laws.collecting and self.in_vain)
    @rule(reason=REASONS, spared=st.sampled_from([0, 0, 0, 1]), upload=st.booleans())
    def all_refused(self, reason: str, spared: int, upload: bool) -> None:
        """The update of each of the cohort that owes one is refused, here or by the device."""
        pair = self.laws.pair
        for device_id in sorted(self.laws._pending())[spared:]:
            said = reason.format(len(self.facts))
            if upload:
                self.result(device_id, 1, 0)
                for place, check in enumerate(self.flying.checks):
                    if (check.device_id, check.round, check.attempt) == (device_id, *pair):
                        self.refuse(place, said)
                        break
            else:
                self.give(DeviceDeclined(device_id, "train", *pair, said, unusable=True))

    @rule(device_id=st.sampled_from(DEVICES), choice=pick)
    def ask_again(self, device_id: str, choice: int) -> None:
        for action in ("train", "evaluate"):
            order = self.an_order(device_id, choice, action)
            if order is not None:
                self.give(OrderRequested(device_id, action, order.round, order.attempt))

    @rule(device_id=st.sampled_from(DEVICES), choice=pick)
    def evaluation(self, device_id: str, choice: int) -> None:
        order = self.an_order(device_id, choice, "evaluate")
        if order is not None:
            accuracy = (0.5, 0.3, 0.7, 0.55)[choice // 7 % 4]
            examples = 10 + choice % 3
            self.give(
                EvaluationReceived(device_id, order.round, 1, examples, {"accuracy": accuracy})
            )

    @precondition(lambda self: self.laws.committed and self.plan.best)
    @rule(choice=pick)
    def all_measure(self, choice: int) -> None:
        """Whoever has an order to evaluate measures its latest one, all with one value."""
        for device_id in DEVICES:
            self.evaluation(device_id, choice - choice % 4 + 1)

    # --- the server's jobs ----------------------------------------------------------------------

    @precondition(lambda self: self.flying.checks)
    @rule(choice=pick)
    def verified(self, choice: int) -> None:
        c = self.flying.checks.pop(choice % len(self.flying.checks))
        self.finish(UpdateVerified(c.device_id, c.round, c.attempt, c.update))

    @precondition(lambda self: self.flying.checks)
    @rule(choice=pick, reason=REASONS)
    def rejected(self, choice: int, reason: str) -> None:
        self.refuse(choice % len(self.flying.checks), reason.format(choice))

    def refuse(self, place: int, reason: str) -> None:
        c = self.flying.checks.pop(place)
        self.finish(UpdateRejected(c.device_id, c.round, c.attempt, c.update, reason))

    @precondition(lambda self: self.flying.folds)
    @rule(choice=pick)
    def vanished(self, choice: int) -> None:
        c = self.flying.folds.pop(choice % len(self.flying.folds))
        self.finish(UpdateVanished(c.device_id, c.round, c.attempt, "not found"))

    @precondition(lambda self: self.flying.sums)
    @rule(choice=pick, works=st.sampled_from([True, True, True, False]))
    def aggregated(self, choice: int, works: bool) -> None:
        c = self.flying.sums.pop(choice % len(self.flying.sums))
        text = f"{c.round} of {c.included}"
        model = Model(c.round, f"g/{c.round}", hashlib.sha256(text.encode()).hexdigest(), 100)
        if works:
            self.finish(AggregationFinished(c.round, c.attempt, model))
        else:
            self.finish(AggregationFailed(c.round, c.attempt, "no space"))

    @precondition(lambda self: self.flying.timers)
    @rule(choice=pick)
    def timer(self, choice: int) -> None:
        c = self.flying.timers.pop(choice % len(self.flying.timers))
        self.finish(TimerFired(c.timer, c.round, c.attempt))

    @precondition(lambda self: self.laws.collecting)
    @rule(passes=st.sampled_from([True, False, False]))
    def deadline(self, passes: bool) -> None:
        if not passes:
            return
        for place, armed in enumerate(self.flying.timers):
            if armed.timer == "deadline" and (armed.round, armed.attempt) == self.laws.pair:
                self.timer(place)
                return

    def finish(self, event: Event) -> None:
        self.give(event)
        self.past.append(event)

    @precondition(lambda self: self.past)
    @rule(choice=pick)
    def stale(self, choice: int) -> None:
        """An answer of an older (round, attempt) comes once more and has no effect on the state."""
        event = self.past[choice % len(self.past)]
        now = (self.machine.ledger.round, self.machine.ledger.attempt)
        if (event.round, event.attempt) == now:  # type: ignore[union-attr]
            return
        self.broken = True
        step = self.machine.handle(event)
        require(not step.facts, "a stale answer decides nothing", (event, step))
        starts = [c for c in step.commands if not isinstance(c, SendReceipt | DiscardUpdate)]
        require(not starts, "a stale answer starts nothing", (event, step))
        self.broken = False

    # --- the operator and the crash -------------------------------------------------------------

    @rule(wish=st.sampled_from(["pause", "go on", "go on", "go on"]))
    def operator(self, wish: str) -> None:
        self.give(PauseRequested() if wish == "pause" else ResumeRequested())

    @precondition(lambda self: len(self.facts) > 25)
    @rule(choice=st.integers(0, 9))
    def stop(self, choice: int) -> None:
        if choice == 0:
            self.give(StopRequested())
        elif choice == 1:
            self.give(FailureReported("the disk is full"))

    @rule()
    def crash(self) -> None:
        before = self.machine.ledger
        self.machine = type(self).make(self.plan, INITIAL, tuple(self.facts))
        require(self.machine.ledger == before, "a restart finds the same state", before)
        self.laws.crashed()
        self.flying = InFlight()
        self.take(None, self.machine.resume())

    # --- liveness -------------------------------------------------------------------------------

    def teardown(self) -> None:
        """Faults stop, every device is there and answers: the run must end."""
        if self.broken:
            return
        self.operator("go on")
        self.all_join()
        for _ in range(CALM_STEPS):
            if self.laws.over:
                break
            self.calm_step()
        require(self.laws.over, "the run ends when faults stop", self.machine.ledger)
        ended = self.machine.ledger.status
        told = any(fact == RunFailed("the disk is full") for fact in self.facts)
        if self.plan.max_attempts == LIVELY_ATTEMPTS and not (told or self.laws.repeated):
            require(ended in {"completed", "stopped"}, "a calm run completes", ended)

    @rule(steps=st.integers(1, 12))
    def things_go_well(self, steps: int) -> None:
        for _ in range(steps):
            if self.flying.checks or self.flying.sums or self.laws.collecting:
                self.calm_step()

    def calm_step(self) -> None:
        """Do one thing that is due, a timer only when nothing else is."""
        if self.flying.checks:
            self.verified(0)
        elif self.flying.sums:
            self.aggregated(len(self.flying.sums) - 1, True)
        elif self.laws.collecting and (owing := sorted(self.laws._pending())):
            self.answer(owing[0])
        elif self.flying.timers:
            self.timer(0)
        else:
            require(self.laws.over, "something is always awaited", self.machine.ledger)

    def answer(self, device_id: str) -> None:
        """Have a device that owes an update send it; it is there, so it was ordered."""
        pair = self.laws.pair
        if device_id not in self.laws.online:
            self.join(device_id, True)
        ordered = [(o.round, o.attempt) for o in self.orders[device_id] if o.action == "train"]
        require(pair in ordered, "who owes was ordered", (device_id, pair))
        self.give(ResultReceived(device_id, *pair, update_of(device_id, *pair)))
