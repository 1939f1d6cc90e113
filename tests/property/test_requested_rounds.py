"""Rounds that are started from outside: each from its base, one at a time, also over crashes."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    precondition,
    rule,
    run_state_machine_as_test,
)

from fl_server.flows.commands import ArmTimer, SendReceipt
from fl_server.flows.events import DeviceJoined, DeviceLeft, StopRequested, TimerFired
from fl_server.rounds import ledger, machine
from fl_server.rounds.commands import (
    Aggregate,
    FoldUpdate,
    ReportRound,
    SendOrder,
    SweepRound,
    VerifyUpdate,
)
from fl_server.rounds.events import (
    AggregationFinished,
    ResultReceived,
    RoundRequested,
    UpdateVerified,
)
from fl_server.rounds.facts import (
    Fact,
    RequestFailed,
    RoundAbandoned,
    RoundCommitted,
    RoundOpened,
    RoundStarted,
)
from fl_server.rounds.ledger import Ledger, RoundStep
from fl_server.rounds.machine import RoundMachine
from fl_server.rounds.model import Model, Update
from fl_server.rounds.plan import Plan
from runtime.errors import InvalidTransition
from tests.laws import Violation, require
from tests.mutants import Mutant
from tests.property.test_mutants import QUICK

DEVICES = ("a", "b", "c")
PLAN = Plan("r", rounds=6, cohort_size=2, quorum=2, evaluate_on="none", on_request=True)
INITIAL = Model(0, "k/0", "0" * 64, 10)


def base(number: int, seed: int = 0) -> Model:
    """Return a model that the platform may give for round ``number``."""
    sha256 = hashlib.sha256(f"{number}/{seed}".encode()).hexdigest()
    return Model(number - 1, f"platform/{number}/{seed}", sha256, 10)


def update(device_id: str, number: int, attempt: int) -> Update:
    return Update(f"u/{number}/{attempt}/{device_id}", 10, "a" * 64, 5)


def join(machine: RoundMachine) -> None:
    for device_id in DEVICES[:2]:
        machine.handle(DeviceJoined(device_id))


def finish(machine: RoundMachine) -> RoundStep:
    """Bring the open round to its commit; return the step that committed it."""
    ledger = machine.ledger
    pair = (ledger.round, ledger.attempt)
    for device_id in ledger.cohort:
        sent = update(device_id, *pair)
        machine.handle(ResultReceived(device_id, *pair, sent))
        machine.handle(UpdateVerified(device_id, *pair, sent))
    assert ledger.phase == "aggregating"
    return machine.handle(AggregationFinished(*pair, made(*pair)))


def made(number: int, attempt: int) -> Model:
    return Model(number, f"k/{number}/{attempt}", f"{number:032x}{attempt:032x}", 10)


def of(step: RoundStep, kind: type) -> list[Any]:
    return [each for each in (*step.facts, *step.commands) if isinstance(each, kind)]


def test_it_waits_until_a_round_is_requested() -> None:
    run = RoundMachine(PLAN, INITIAL)
    join(run)
    assert run.ledger.phase == "waiting"
    assert run.resume() == RoundStep()
    step = run.handle(RoundRequested(3, base(3)))
    assert of(step, RoundOpened) == [RoundOpened(3, 1, base(3))]
    [started] = of(step, RoundStarted)
    assert (started.round, started.attempt, started.cohort) == (3, 1, ("a", "b"))
    assert run.ledger.model == base(3), "orders are made of it"


def test_it_reports_what_it_committed_until_the_next_request() -> None:
    run = RoundMachine(PLAN, INITIAL)
    join(run)
    run.handle(RoundRequested(1, base(1)))
    committing = finish(run)
    assert of(committing, ReportRound) == [ReportRound(1, made(1, 1))]
    assert run.ledger.phase == "waiting"
    assert of(run.handle(DeviceJoined("c")), RoundStarted) == []
    report = [ReportRound(1, made(1, 1))]
    assert run.handle(RoundRequested(1, base(1))).commands == report, "its report was lost"
    step = run.handle(RoundRequested(2, base(2)))
    assert of(step, ReportRound) == []
    assert of(run.resume(), ReportRound) == []


def test_another_request_ends_the_open_round() -> None:
    run = RoundMachine(PLAN, INITIAL)
    join(run)
    run.handle(RoundRequested(1, base(1)))
    assert run.handle(RoundRequested(1, base(1))) == RoundStep(), "it is open already"
    step = run.handle(RoundRequested(1, base(1, seed=1)))
    assert [type(fact) for fact in step.facts] == [
        RoundAbandoned,
        RoundOpened,
        RoundStarted,
    ]
    assert of(step, SweepRound) == [SweepRound(1, 1)]
    assert (run.ledger.round, run.ledger.attempt) == (1, 2)
    run.handle(RoundRequested(4, base(4)))
    assert (run.ledger.round, run.ledger.attempt) == (4, 1)
    assert run.handle(RoundRequested(2, base(2))) == RoundStep(), "rounds only go on"
    assert run.handle(RoundRequested(7, base(7))) == RoundStep(), "there are six"


def test_refusals_of_a_round_do_not_count_against_the_next_request() -> None:
    run = RoundMachine(PLAN, INITIAL)
    for number in (1, 2, 3):
        run.handle(RoundRequested(number, base(number)))
        join(run)
        for device_id in ("a", "b"):
            place = (device_id, number, 1)
            run.handle(ResultReceived(*place, update(*place), "it names no update"))
            run.handle(DeviceLeft(device_id))
        run.handle(TimerFired("deadline", number, 1))
        assert (run.ledger.status, run.ledger.phase) == ("running", "gathering")


def test_a_round_whose_updates_are_always_refused_is_given_up_and_asked_for_again() -> None:
    run = RoundMachine(PLAN, INITIAL)
    join(run)
    facts = list(run.handle(RoundRequested(2, base(2))).facts)
    for attempt in (1, 2):
        for device_id in ("a", "b"):
            place = (device_id, 2, attempt)
            step = run.handle(ResultReceived(*place, update(*place), "it names no update"))
            facts += step.facts
    [failed] = of(step, RequestFailed)
    assert failed.reason.startswith("round 2, attempt 2: every update was refused; that of a: it")
    assert (run.ledger.status, run.ledger.phase) == ("running", "waiting")
    assert run.ledger.explanation == failed.reason
    assert of(step, SweepRound) == [SweepRound(2, 2)]
    again = RoundMachine(PLAN, INITIAL, facts)
    join(again)
    for each in (run, again):
        step = each.handle(RoundRequested(2, base(2)))
        [opened] = of(step, RoundOpened)
        assert (opened.round, opened.attempt) == (2, 3), "in a new attempt, as after a crash"


def test_the_last_round_ends_the_run_and_is_reported_after_a_crash_too() -> None:
    run = RoundMachine(PLAN, INITIAL)
    join(run)
    facts = list(run.handle(RoundRequested(6, base(6))).facts)
    pair = (6, 1)
    for device_id in ("a", "b"):
        sent = update(device_id, *pair)
        for event in (
            ResultReceived(device_id, *pair, sent),
            UpdateVerified(device_id, *pair, sent),
        ):
            facts += run.handle(event).facts
    facts += run.handle(AggregationFinished(*pair, made(*pair))).facts
    assert run.ledger.status == "completed"
    again = RoundMachine(PLAN, INITIAL, facts).resume()
    assert of(again, ReportRound) == [ReportRound(6, made(6, 1))]


def test_a_run_that_is_not_on_request_opens_nothing() -> None:
    plan = Plan("r", rounds=6, cohort_size=2, quorum=2)
    run = RoundMachine(plan, INITIAL)
    assert run.handle(RoundRequested(1, base(1))) == RoundStep()
    with pytest.raises(InvalidTransition):
        run.ledger.apply(RoundOpened(1, 1, base(1)))


def test_a_base_is_the_version_before_its_round() -> None:
    with pytest.raises(ValueError, match="round 3 cannot begin with version 1"):
        RoundRequested(3, base(2))


class Requested(RuleBasedStateMachine):
    """Requests, devices, timers, results and crashes in any order."""

    make: type[RoundMachine] = RoundMachine

    def __init__(self) -> None:
        super().__init__()
        self.facts: list[Fact] = []
        self.machine = self.make(PLAN, INITIAL)
        self.requested: dict[int, list[Model]] = {}
        self.reported: dict[int, Model] = {}
        self.committed: dict[int, Model] = {}
        self.jobs: list[Any] = []

    def take(self, step: RoundStep) -> None:
        for fact in step.facts:
            match fact:
                case RoundOpened():
                    require(fact.round <= PLAN.rounds, "no round beyond the last", fact)
                    asked = self.requested.get(fact.round, [])
                    require(fact.base in asked, "opened is what was requested", fact)
                case RoundStarted():
                    last = [each for each in self.facts if isinstance(each, RoundOpened)]
                    require(bool(last), "no round starts by itself", fact)
                    require(last[-1].round == fact.round, "one round a request", fact)
                    done = fact.round in self.committed
                    require(not done, "a committed round is not run again", fact)
                case RoundCommitted():
                    self.committed[fact.round] = fact.model
            self.facts.append(fact)
        for command in step.commands:
            match command:
                case ReportRound():
                    same = self.committed.get(command.round) == command.model
                    require(same, "reported is what was committed", command)
                    self.reported[command.round] = command.model
                case VerifyUpdate():
                    place = (command.device_id, command.round, command.attempt)
                    self.jobs.append(UpdateVerified(*place, command.update))
                case Aggregate():
                    pair = (command.round, command.attempt)
                    self.jobs.append(AggregationFinished(*pair, made(*pair)))
                case ArmTimer() | SendReceipt() | SendOrder() | FoldUpdate():
                    pass
        fold = Ledger(PLAN.rounds, INITIAL, on_request=True)
        for fact in self.facts:
            fold.apply(fact)
        require(vars(fold) == vars(self.machine.ledger), "the state is the fold of its facts", "")
        require(self.committed == self.reported, "every commit is reported", self.committed)

    @rule(number=st.integers(1, 7), seed=st.integers(0, 1))
    def request(self, number: int, seed: int) -> None:
        self.requested.setdefault(number, []).append(base(number, seed))
        self.take(self.machine.handle(RoundRequested(number, base(number, seed))))

    @rule(device_id=st.sampled_from(DEVICES))
    def join(self, device_id: str) -> None:
        self.take(self.machine.handle(DeviceJoined(device_id)))

    @rule(device_id=st.sampled_from(DEVICES))
    def leave(self, device_id: str) -> None:
        self.take(self.machine.handle(DeviceLeft(device_id)))

    @rule(timer=st.sampled_from(["gather", "deadline"]))
    def fire(self, timer: str) -> None:
        pair = (self.machine.ledger.round, self.machine.ledger.attempt)
        self.take(self.machine.handle(TimerFired(timer, *pair)))

    @rule(device_id=st.sampled_from(DEVICES))
    def report(self, device_id: str) -> None:
        pair = (self.machine.ledger.round, self.machine.ledger.attempt)
        sent = update(device_id, *pair)
        self.take(self.machine.handle(ResultReceived(device_id, *pair, sent)))

    @rule()
    def all_goes_well(self) -> None:
        """Let the cohort report and every job end, so that a search sees many commits."""
        for device_id in self.machine.ledger.cohort:
            self.report(device_id)
        while self.jobs:
            self.take(self.machine.handle(self.jobs.pop(0)))

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def job_ends(self, data: st.DataObject) -> None:
        job = self.jobs.pop(data.draw(st.integers(0, len(self.jobs) - 1)))
        self.take(self.machine.handle(job))

    @rule()
    def crash(self) -> None:
        self.jobs = []
        self.machine = self.make(PLAN, INITIAL, self.facts)
        self.reported = {}
        step = self.machine.resume()
        made_last = self.machine.ledger.made
        expected = [] if made_last is None else [ReportRound(made_last.version, made_last)]
        require(of(step, ReportRound) == expected, "the latest commit is reported again", step)
        self.reported = dict(self.committed)
        self.take(step)


TestRequested = Requested.TestCase
MUTANTS = [
    Mutant(
        "starts without a request",
        ledger,
        {'"waiting" if self.on_request else "gathering"': '"gathering"'},
    ),
    Mutant(
        "begins a committed round again",
        ledger,
        {"self._next(fact.round + 1, 1)": "self._next(fact.round, 1)"},
    ),
    Mutant(
        "forgets what it made",
        ledger,
        {"                    self.made = fact.model\n": "                    self.made = None\n"},
    ),
    Mutant(
        "reports no commit",
        machine,
        {"event.model), step)\n        self._report(step)": "event.model), step)"},
    ),
    Mutant(
        "reports nothing after a crash",
        machine,
        {"        self._report(step)\n        match ledger.phase": "        match ledger.phase"},
    ),
    Mutant(
        "reports what an earlier request made",
        ledger,
        {"fact.base, (), None": "fact.base, (), self.made"},
    ),
    Mutant(
        "runs beyond the last round",
        machine,
        {"on_request or not event.round <= self.plan.rounds": "on_request"},
    ),
    Mutant("goes back", machine, {"or event.round < ledger.round or": "or"}),
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_the_search_finds(mutant: Mutant) -> None:
    planted = type("Planted", (Requested,), {"make": mutant.machine()})
    with pytest.raises((Violation, InvalidTransition)):
        run_state_machine_as_test(planted, settings=QUICK)


def test_a_stopped_run_opens_no_round() -> None:
    run = RoundMachine(PLAN, INITIAL)
    run.handle(StopRequested())
    assert run.handle(RoundRequested(1, base(1))) == RoundStep()
