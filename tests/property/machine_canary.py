"""Every ordering of what can happen to a canary, as a hypothesis state machine.

The books below are kept from the events alone, beside the machine under test: what each device has
said, what may be ordered of it, and which verdict follows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TypeAlias

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from fl_server.canary import events as c
from fl_server.canary.machine import CanaryMachine
from fl_server.flows.commands import SendReceipt
from fl_server.flows.events import Action, DeviceDeclined, DeviceJoined, DeviceLeft, OrderRequested
from fl_server.flows.flow import Step
from fl_server.rounds.events import EvaluationReceived
from tests.laws import require

DEVICES = ("e1", "e2", "e3", "e4")
STRANGER = "e9"
SHA = "ab" * 32
CANDIDATE = c.Contender("digits-1", 5, "k/5", SHA, 100)
PRODUCTION = c.Contender("digits-0", 9, "k/9", SHA, 100)
MakeMachine = Callable[[c.CanaryPlan, Iterable[c.Fact]], CanaryMachine]
Answer: TypeAlias = tuple[int, dict[str, float]] | None

values = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])
answers = st.builds(
    lambda value, other, has: {"other": other} | ({"metric": value} if has else {}),
    values,
    values,
    st.sampled_from([True] * 6 + [False]),
)
plans = st.builds(
    lambda cohort, quorum, loss, drop: plan_of(DEVICES[:cohort], min(quorum, cohort), loss, drop),
    cohort=st.integers(1, 4),
    quorum=st.integers(1, 3),
    loss=st.booleans(),
    drop=st.sampled_from([0.0, 0.25, 0.5]),
)


def plan_of(
    cohort: tuple[str, ...], quorum: int, loss: bool = False, max_drop: float = 0.0
) -> c.CanaryPlan:
    """Return a plan that compares by accuracy or by loss."""
    return c.CanaryPlan(
        canary_id="canary-1",
        task="digits",
        candidate=CANDIDATE,
        production=PRODUCTION,
        cohort=cohort,
        measured_by="evaluators",
        metric="loss" if loss else "accuracy",
        max_drop=max_drop,
        deadline_s=60.0,
        quorum=quorum,
        algorithm="fedavg",
        algorithm_settings={},
        training={},
        seed=0,
    )


class Canary(RuleBasedStateMachine):
    """The search. Subclasses put another machine in ``make`` to plant a bug."""

    make: MakeMachine = CanaryMachine
    broken = True

    @initialize(plan=plans, online=st.sets(st.sampled_from(DEVICES)))
    def begin(self, plan: c.CanaryPlan, online: set[str]) -> None:
        self.plan = plan
        self.machine = type(self).make(plan, ())
        self.facts: list[c.Fact] = []
        self.said: dict[tuple[str, str], Answer] = {}
        self.asked: list[EvaluationReceived] = []
        self.words: dict[tuple[str, int, int], str] = {}
        self.online: set[str] = set()
        self.left: set[str] = set()
        self.open = self.judged = self.ended = False
        self.verdict: c.Judged | None = None
        self.armed = self.marking = self.settling = False
        self.take(None, self.machine.resume())
        for device_id in sorted(online):
            self.join(device_id, True)

    # --- the door and the laws ------------------------------------------------------------------

    def give(self, event: c.Event) -> Step:
        self.broken = True
        step = self.machine.handle(event)
        self.take(event, step)
        return step

    def take(self, event: c.Event | None, step: Step) -> None:
        self.broken = True
        for fact in step.facts:
            self.facts.append(fact)
            self.decided(fact, event)
        for command in step.commands:
            self.commanded(command)
        if self.judged and not self.ended:
            require(self.settling, "a verdict is carried out", step)
        if self.open and not self.judged:
            require(self.pending(), "who has all that it waits for judges", self.said)
            alone = not self.pending() - self.left and len(self.pairs()) >= self.plan.quorum
            require(not alone, "nobody waits for those that left when there is enough", self.said)
        again = type(self).make(self.plan, tuple(self.facts)).state
        require(again == self.machine.state, "the state is the fold of the facts", again)
        self.broken = False

    def decided(self, fact: c.Fact, event: c.Event | None) -> None:
        require(not self.ended, "an ended canary decides nothing", fact)
        match fact:
            case c.OrdersOpened():
                require(event == c.CandidateMarked(), "orders follow the mark", event)
                self.open = True
            case c.SideMeasured():
                require(isinstance(event, EvaluationReceived), "what was measured came", event)
                self.answered(fact.device_id, fact.side, (fact.num_examples, fact.metrics))
            case c.SideDeclined():
                require(isinstance(event, DeviceDeclined), "what was declined came", event)
                self.answered(fact.device_id, fact.side, None)
            case c.Judged():
                require(not self.judged, "one verdict", fact)
                self.judges(fact, event)
                self.judged, self.verdict = True, fact
            case c.Settled():
                require(isinstance(event, c.VerdictCarriedOut), "what was settled came", event)
                self.ended, self.settling = True, False

    def answered(self, device_id: str, side: str, answer: Answer) -> None:
        require(self.open and not self.judged, "answers count while it measures", device_id)
        require(device_id in self.plan.cohort, "answers count of the cohort alone", device_id)
        require((device_id, side) not in self.said, "an answer counts once", (device_id, side))
        self.said[device_id, side] = answer

    def judges(self, fact: c.Judged, event: c.Event | None) -> None:
        if isinstance(event, c.MarkingFailed | c.ProductionMoved):
            require(fact.verdict == "inconclusive", "nothing was compared", fact)
            return
        if not self.open:
            require(isinstance(event, c.DeadlinePassed), "an early verdict", event)
            require(fact.verdict == "inconclusive", "nothing was measured", fact)
            return
        pairs = self.pairs()
        due = not (self.pending() - self.left) and len(pairs) >= self.plan.quorum
        over = isinstance(event, c.DeadlinePassed) or not self.pending() or due
        require(over, "a verdict waits for whoever may still answer", (event, self.said))
        require(fact.verdict == self.expected(pairs), "the verdict follows from the pairs", fact)
        require(fact.pairs == len(pairs), "the pairs are counted", fact)
        require(fact.reason, "a verdict says why", fact)
        if fact.candidate_mean is not None and fact.production_mean is not None:
            total = sum(weight for *_, weight in pairs)
            for place, mean in enumerate((fact.candidate_mean, fact.production_mean)):
                expected = sum(pair[place] * pair[2] for pair in pairs) / total
                require(math.isclose(mean, expected, abs_tol=1e-9), "means are by examples", fact)

    def pairs(self) -> list[tuple[float, float, int]]:
        """Return (candidate, production, weight) of each device that measured both."""
        found = []
        for device_id in self.plan.cohort:
            candidate = self.said.get((device_id, "candidate"))
            production = self.said.get((device_id, "production"))
            if candidate and production and {*candidate[1]} & {*production[1]} >= {self.metric}:
                weight = min(candidate[0], production[0])
                found.append((candidate[1][self.metric], production[1][self.metric], weight))
        return found

    def expected(self, pairs: list[tuple[float, float, int]]) -> str:
        for device_id in self.plan.cohort:
            candidate = self.said.get((device_id, "candidate"))
            production = self.said.get((device_id, "production"))
            lacks = candidate and production and self.metric in production[1]
            if lacks and candidate and self.metric not in candidate[1]:
                return "rolled_back"
        if len(pairs) < self.plan.quorum:
            return "inconclusive"
        total = sum(weight for *_, weight in pairs)
        gain = sum((candidate - production) * weight for candidate, production, weight in pairs)
        gain *= -1 if self.metric == "loss" else 1
        return "promoted" if gain / total >= -self.plan.max_drop - 1e-9 else "rolled_back"

    @property
    def metric(self) -> str:
        return self.plan.metric

    def done(self, device_id: str) -> bool:
        sides = [self.said.get((device_id, side), "awaited") for side in c.ATTEMPT_OF]
        return None in sides or "awaited" not in sides

    def pending(self) -> set[str]:
        return {device_id for device_id in self.plan.cohort if not self.done(device_id)}

    def commanded(self, command: c.Command) -> None:
        match command:
            case c.OrderSide():
                require(self.open and not self.judged, "orders while it measures", command)
                require(command.device_id in self.pending(), "who owes is ordered", command)
                require(command.device_id in self.online, "who is there is ordered", command)
                answered = (command.device_id, command.side) in self.said
                require(not answered, "what is owed is ordered", command)
            case c.ArmDeadline():
                self.armed = True
            case c.MarkCandidate():
                self.marking = True
            case c.CarryOutVerdict():
                assert self.verdict is not None
                same = (command.verdict, command.reason) == (
                    self.verdict.verdict,
                    self.verdict.reason,
                )
                require(same, "the verdict that stands is carried out", command)
                self.settling = True
            case SendReceipt():
                self.received(command)

    def received(self, receipt: SendReceipt) -> None:
        key = (receipt.device_id, receipt.round, receipt.attempt)
        side = c.ATTEMPTS.get(receipt.attempt)
        counted = receipt.round == c.ROUND and self.said.get((receipt.device_id, side or ""))
        require(
            (receipt.status == "accepted") == bool(counted), "a receipt is true", (receipt, counted)
        )
        if self.words.get(key) == "accepted":
            require(receipt.status == "accepted", "an accepted answer stays so", receipt)
        self.words[key] = receipt.status

    # --- what happens ---------------------------------------------------------------------------

    @rule(device_id=st.sampled_from(DEVICES), accepting=st.sampled_from([True, True, True, False]))
    def join(self, device_id: str, accepting: bool) -> None:
        self.left.discard(device_id)
        (self.online.add if accepting else self.online.discard)(device_id)
        step = self.give(DeviceJoined(device_id, "evaluator", accepting))
        self.is_ordered(device_id, step)

    def is_ordered(self, device_id: str, step: Step) -> None:
        """See that whoever is there and owes was ordered all that it owes."""
        ordered = {each.side for each in step.commands if isinstance(each, c.OrderSide)}
        owes = self.open and not self.judged and device_id in self.pending() & self.online
        due = {side for side in c.ATTEMPT_OF if owes and (device_id, side) not in self.said}
        require(ordered == due, "who comes back gets its orders again", (device_id, step))

    @rule(device_id=st.sampled_from(DEVICES))
    def leave(self, device_id: str) -> None:
        self.online.discard(device_id)
        self.left.add(device_id)
        self.give(DeviceLeft(device_id))

    @rule(
        device_id=st.sampled_from([*DEVICES, STRANGER]),
        attempt=st.sampled_from([1, 1, 1, 2, 2, 2, 3]),
        number=st.sampled_from([c.ROUND] * 9 + [2]),
        examples=st.integers(1, 3),
        said=answers,
    )
    def evaluation(
        self, device_id: str, attempt: int, number: int, examples: int, said: dict[str, float]
    ) -> None:
        metrics = {self.metric if name == "metric" else name: said[name] for name in said}
        event = EvaluationReceived(device_id, number, attempt, examples, metrics)
        self.asked.append(event)
        self.tell(event)

    def tell(self, event: EvaluationReceived) -> None:
        step = self.give(event)
        receipts = [each for each in step.commands if isinstance(each, SendReceipt)]
        require(len(receipts) == 1, "every result gets one receipt", (event, step))

    @precondition(lambda self: self.open and not self.judged)
    @rule(
        missing=st.integers(0, 2),
        better=values,
        worse=values,
        alike=st.booleans(),
        lacks=st.sampled_from([False, False, False, True]),
        examples=st.integers(1, 3),
    )
    def all_but_a_few_answer(
        self, missing: int, better: float, worse: float, alike: bool, lacks: bool, examples: int
    ) -> None:
        for place, device_id in enumerate(self.plan.cohort[missing:]):
            for attempt, value in ((1, better), (2, worse if alike or place % 2 else better)):
                # of the candidate alone: it gives one of them no number
                name = "other" if lacks and (place, attempt) == (0, 1) else self.metric
                said = {name: value}
                result = (device_id, c.ROUND, attempt, examples + place, said)
                self.tell(EvaluationReceived(*result))

    @precondition(lambda self: self.asked)
    @rule(choice=st.integers(0, 1 << 16))
    def duplicate(self, choice: int) -> None:
        self.tell(self.asked[choice % len(self.asked)])

    @rule(
        device_id=st.sampled_from(DEVICES),
        attempt=st.sampled_from([1, 2, 2, 3]),
        action=st.sampled_from(["evaluate", "evaluate", "evaluate", "train"]),
        unlucky=st.sampled_from([True, False, False]),
    )
    def decline(self, device_id: str, attempt: int, action: Action, unlucky: bool) -> None:
        if unlucky:
            self.give(DeviceDeclined(device_id, action, c.ROUND, attempt, "no data"))

    @rule(device_id=st.sampled_from(DEVICES), attempt=st.sampled_from([1, 2]))
    def ask_again(self, device_id: str, attempt: int) -> None:
        self.online.add(device_id)  # who asks is there
        self.left.discard(device_id)
        self.give(DeviceJoined(device_id, "evaluator", True))
        step = self.give(OrderRequested(device_id, "evaluate", c.ROUND, attempt))
        side = c.ATTEMPTS[attempt]
        owes = self.open and not self.judged and device_id in self.pending()
        if owes and (device_id, side) not in self.said:
            require(step.commands == [c.OrderSide(device_id, side)], "URLs are renewed", step)
        if self.judged:
            require(step.commands == [c.CloseOrders()], "who asks in vain is told so", step)

    @precondition(lambda self: self.marking)
    @rule(works=st.sampled_from([True, True, True, True, False]))
    def marked(self, works: bool) -> None:
        self.marking = False
        was_open = self.open or self.judged
        step = self.give(c.CandidateMarked() if works else c.MarkingFailed("it was removed"))
        if works and not was_open:
            ordered = {each.device_id for each in step.commands if isinstance(each, c.OrderSide)}
            require(ordered == self.online & self.pending(), "whoever is there is ordered", step)

    @precondition(lambda self: len(self.facts) > 4 and self.armed)
    @rule(passes=st.sampled_from([True, False, False]))
    def deadline(self, passes: bool) -> None:
        if passes:
            self.armed = False
            self.give(c.DeadlinePassed())
            require(self.judged, "the deadline ends it", self.facts)

    @precondition(lambda self: len(self.facts) > 3)
    @rule(name=st.sampled_from([PRODUCTION.name, PRODUCTION.name, PRODUCTION.name, "b:1", ""]))
    def production_moved(self, name: str) -> None:
        self.give(c.ProductionMoved(name))
        require(self.judged or name == PRODUCTION.name, "what was compared with has gone", name)

    @precondition(lambda self: self.settling)
    @rule(problem=st.sampled_from(["", "", "no such version"]))
    def settled(self, problem: str) -> None:
        self.give(c.VerdictCarriedOut(problem))
        require(self.ended, "what is carried out is over", self.facts)

    @rule()
    def stale_ends(self) -> None:
        """What a former life of the server had under way comes late, where it means nothing."""
        if self.open or self.judged:
            self.give(c.CandidateMarked())
        if not self.judged:
            self.give(c.VerdictCarriedOut())

    @rule()
    def crash(self) -> None:
        self.machine = type(self).make(self.plan, tuple(self.facts))
        self.online, self.left = set(), set()
        self.armed = self.marking = self.settling = False
        self.take(None, self.machine.resume())
        require(self.marking == (not self.open and not self.judged), "the mark is made again")
        require(self.armed == (not self.judged), "the deadline runs again")

    # --- liveness -------------------------------------------------------------------------------

    def teardown(self) -> None:
        if self.broken:
            return
        if not self.judged:
            require(self.armed, "a deadline is always armed", self.facts)
            self.give(c.DeadlinePassed())
        if not self.ended:
            self.settled("")
        require(self.ended, "a canary ends", self.facts)
        assert self.verdict is not None
        means = (self.verdict.candidate_mean, self.verdict.production_mean)
        require(all(each is None or math.isfinite(each) for each in means), "means are numbers")
