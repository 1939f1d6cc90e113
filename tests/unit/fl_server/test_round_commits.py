"""The round machine: commits, the evaluation of versions, and what the operator asks of a run."""

from __future__ import annotations

import pytest

from fl_server.flows.commands import ArmTimer
from fl_server.flows.events import (
    DeviceDeclined,
    DeviceLeft,
    FailureReported,
    PauseRequested,
    ResumeRequested,
    StopRequested,
    TimerFired,
)
from fl_server.rounds.commands import SendOrder, SweepRound, SweepRun
from fl_server.rounds.events import EvaluationReceived, Event
from fl_server.rounds.facts import RunPaused, RunResumed
from fl_server.rounds.machine import RESEND_S
from tests.rounds import Run, finish, model, ordered, receipt

# --- commits and evaluation -------------------------------------------------------------------


def test_a_commit_goes_on_with_the_next_round() -> None:
    run = Run.of("a", "b", "c")
    run.counts("a", "b", "c")
    commands = run.commits()
    assert run.now == (2, 1)
    assert commands[0] == SweepRound(1, 1)
    assert ordered(commands) == {"a", "b", "c"}
    assert run.machine.ledger.model == model(1)


def test_evaluation_never_blocks_the_next_round() -> None:
    run = Run.of("a", "b", "c", "e1")
    run.counts("a", "b", "c")
    commands = run.commits()
    assert SendOrder("e1", "evaluate", 1, 1) in commands
    assert run.phase == "collecting"
    run.counts("a", "b", "c")
    assert run.phase == "aggregating"


def test_the_last_evaluation_is_awaited_and_ends_the_run() -> None:
    run = Run.of("a", "b", "c", "e1")
    finish(run)
    armed = ArmTimer("evaluation", 2, 1, run.plan.evaluation_deadline_s)
    assert run.last.commands[-2:] == [armed, ArmTimer("resend", 2, 1, RESEND_S)]
    run.give(EvaluationReceived("e1", 1, 1, 10, {"accuracy": 0.4}))
    assert run.phase == "evaluating"
    commands = run.give(EvaluationReceived("e1", 2, 1, 10, {"accuracy": 0.5}))
    assert run.machine.ledger.status == "completed"
    assert commands[-1] == SweepRun()
    assert run.machine.ledger.metric(2, "accuracy") == 0.5


@pytest.mark.parametrize(
    "end",
    [
        TimerFired("evaluation", 2, 1),
        DeviceLeft("e1"),
        DeviceDeclined("e1", "evaluate", 2, 1, "no space"),
    ],
    ids=lambda event: type(event).__name__,
)
def test_the_last_evaluation_is_not_awaited_for_ever(end: Event) -> None:
    run = Run.of("a", "b", "c", "e1")
    finish(run)
    run.give(end)
    assert run.machine.ledger.status == "completed"


def test_without_an_evaluator_the_last_commit_completes_the_run() -> None:
    run = Run.of("a", "b", "c", rounds=1)
    run.counts("a", "b", "c")
    assert run.commits() == [SweepRound(1, 1), SweepRun()]
    assert run.machine.ledger.status == "completed"


def test_every_other_version_is_evaluated_and_always_the_last() -> None:
    run = Run.of("a", "b", "c", "e1", rounds=3, evaluate_every=2)
    evaluated = []
    while run.phase != "evaluating":
        run.counts("a", "b", "c")
        evaluated += [c.round for c in run.commits() if getattr(c, "action", "") == "evaluate"]
    assert evaluated == [2, 3]


def test_devices_evaluate_when_the_plan_says_so() -> None:
    run = Run.of("a", "b", "c", "e1", evaluate_on="devices")
    run.counts("a", "b", "c")
    commands = run.commits()
    evaluations = {c.device_id for c in commands if getattr(c, "action", "") == "evaluate"}
    assert evaluations == {"a", "b", "c"}


def test_an_evaluation_counts_once_and_its_mean_is_by_examples() -> None:
    run = Run.of("a", "b", "c", "e1", "e2")
    run.counts("a", "b", "c")
    run.commits()
    for name, examples, accuracy in [("e1", 10, 0.5), ("e2", 30, 0.9), ("e1", 10, 0.1)]:
        commands = run.give(EvaluationReceived(name, 1, 1, examples, {"accuracy": accuracy}))
        assert receipt(commands).status == "accepted"
    assert run.machine.ledger.metric(1, "accuracy") == pytest.approx(0.8)


def test_an_evaluation_of_what_is_not_committed_is_unknown() -> None:
    run = Run.of("a", "b", "c", "e1")
    assert receipt(run.give(EvaluationReceived("e1", 1, 1, 10, {}))).status == "unknown"


# --- the operator -----------------------------------------------------------------------------


def test_pause_lets_the_open_round_finish_and_starts_no_other() -> None:
    run = Run.of("a", "b", "c")
    run.give(PauseRequested())
    run.counts("a", "b", "c")
    assert not ordered(run.commits())
    assert run.phase == "gathering"
    assert run.machine.ledger.status == "paused"
    assert ordered(run.give(ResumeRequested())) == {"a", "b", "c"}


def test_pause_and_resume_twice_say_nothing_new() -> None:
    run = Run.of("a", "b", "c")
    run.give(PauseRequested())
    assert run.give(PauseRequested()) == []
    run.give(ResumeRequested())
    assert run.give(ResumeRequested()) == []
    assert [type(fact) for fact in run.facts[1:]] == [RunPaused, RunResumed]


def test_stop_ends_the_run_and_sweeps_it() -> None:
    run = Run.of("a", "b", "c")
    assert run.give(StopRequested("enough")) == [SweepRun()]
    assert run.machine.ledger.reason == "enough"
    assert run.give(StopRequested()) == []
    assert run.join("d") == []
    assert run.give(ResumeRequested()) == []


def test_a_failure_that_the_shell_reports_fails_the_run() -> None:
    run = Run.of("a", "b", "c")
    assert run.give(FailureReported("the model does not fit")) == [SweepRun()]
    assert run.machine.ledger.status == "failed"
    assert run.give(FailureReported("again")) == []
