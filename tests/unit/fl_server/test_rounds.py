"""The round machine's rules, one by one and by name."""

from __future__ import annotations

import pytest

from fl_server.flows.commands import ArmTimer, SendReceipt
from fl_server.flows.events import (
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
from fl_server.rounds.commands import (
    Aggregate,
    Command,
    DiscardUpdate,
    FoldUpdate,
    SendOrder,
    SweepRound,
    SweepRun,
    VerifyUpdate,
)
from fl_server.rounds.events import (
    AggregationFailed,
    AggregationFinished,
    EvaluationReceived,
    Event,
    ResultReceived,
    UpdateRejected,
    UpdateVanished,
)
from fl_server.rounds.facts import (
    FACTS,
    EvaluationDeclined,
    EvaluationOrdered,
    EvaluationRecorded,
    Fact,
    OrderDeclined,
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
    UpdateAccepted,
    UpdateRefused,
    UpdateWithdrawn,
)
from fl_server.rounds.ledger import LEGAL, Ledger
from fl_server.rounds.machine import RESEND_S
from fl_server.rounds.plan import Phase
from runtime.errors import InvalidTransition
from tests.rounds import INITIAL, Run, finish, model, of_type, ordered, receipt, update

# --- gathering --------------------------------------------------------------------------------


def test_a_full_cohort_starts_at_once_with_orders_and_a_deadline() -> None:
    run = Run.of("a", "b")
    commands = run.join("c")
    assert run.phase == "collecting"
    assert ordered(commands) == {"a", "b", "c"}
    assert commands[-2:] == [
        ArmTimer("deadline", 1, 1, run.plan.deadline_s),
        ArmTimer("resend", 1, 1, RESEND_S),
    ]


def test_a_quorum_waits_for_the_gather_timer_and_then_starts() -> None:
    run = Run.of("a")
    assert run.join("b") == [ArmTimer("gather", 1, 1, run.plan.gather_s)]
    commands = run.fires("gather")
    assert ordered(commands) == {"a", "b"}
    assert run.machine.ledger.target == 2


def test_one_gather_timer_at_a_time_and_another_after_it_fired_in_vain() -> None:
    run = Run.of("a", "b", quorum=2, cohort_size=4)
    assert run.join("c") == []
    run.give(DeviceLeft("b"), DeviceLeft("c"))
    assert run.fires("gather") == []
    assert run.join("c") == [ArmTimer("gather", 1, 1, run.plan.gather_s)]


def test_below_the_quorum_nothing_starts_and_nothing_is_armed() -> None:
    assert Run.of("a").last == Step()


def test_a_draining_device_is_not_chosen() -> None:
    run = Run.of("a", "b")
    run.give(DeviceJoined("c", accepting=False))
    assert run.phase == "gathering"
    assert ordered(run.fires("gather")) == {"a", "b"}


def test_an_evaluator_never_trains() -> None:
    run = Run.of("a", "b", "e1")
    assert run.phase == "gathering"


def test_over_selection_invites_more_and_closes_at_the_target() -> None:
    run = Run.of("a", "b", "c", cohort_size=2, over_selection=1.5)
    assert len(run.machine.ledger.cohort) == 3
    commands = run.counts("a", "b")
    assert of_type(commands, Aggregate) == [Aggregate(1, 1, ("a", "b"))]


def test_the_cohort_is_a_function_of_seed_round_and_attempt() -> None:
    names = [f"d{number:02}" for number in range(20)]

    def cohort(seed: int, order: list[str], attempts: int = 0) -> tuple[str, ...]:
        run = Run.of(cohort_size=4, seed=seed)
        run.give(PauseRequested())
        run.join(*order)
        run.give(ResumeRequested())
        for _ in range(attempts):
            run.fires("deadline")
        return run.machine.ledger.cohort

    assert cohort(1, names) == cohort(1, names[::-1])
    assert cohort(1, names) != cohort(2, names)
    assert cohort(1, names) != cohort(1, names, attempts=1)


# --- collecting -------------------------------------------------------------------------------


def test_a_result_is_verified_before_it_counts() -> None:
    run = Run.of("a", "b", "c")
    assert run.reports("a") == [VerifyUpdate("a", 1, 1, update("a"))]
    assert not run.machine.ledger.accepted
    assert run.verifies("a") == [
        SendReceipt("a", "train", 1, 1, "accepted"),
        FoldUpdate("a", 1, 1, update("a")),
    ]
    assert set(run.machine.ledger.accepted) == {"a"}


def test_the_target_closes_the_round() -> None:
    run = Run.of("a", "b", "c")
    assert of_type(run.counts("a", "b", "c"), Aggregate) == [Aggregate(1, 1, ("a", "b", "c"))]


def test_a_quorum_closes_the_round_when_all_that_live_have_answered() -> None:
    run = Run.of("a", "b", "c")
    run.counts("a", "b")
    assert run.phase == "collecting"
    assert run.give(DeviceLeft("c")) == [Aggregate(1, 1, ("a", "b"))]


def test_who_reports_and_leaves_is_waited_for_until_its_update_is_checked() -> None:
    run = Run.of("a", "b", "c")
    run.reports("c")
    run.give(DeviceLeft("c"))
    run.counts("a", "b")
    assert run.phase == "collecting"
    assert Aggregate(1, 1, ("a", "b", "c")) in run.verifies("c")


def test_a_report_that_is_not_usable_is_refused_with_its_fault() -> None:
    run = Run.of("a", "b", "c")
    run.counts("a", "b")
    commands = run.give(ResultReceived("c", 1, 1, update("c"), "not its own key"))
    assert receipt(commands).reason == "not its own key"
    assert DiscardUpdate(update("c").key) in commands
    assert Aggregate(1, 1, ("a", "b")) in commands
    assert run.facts[-2] == UpdateRefused(1, 1, "c", "not its own key")


def test_a_refused_and_a_declined_order_are_answers() -> None:
    run = Run.of("a", "b", "c", "d", cohort_size=4)
    run.counts("a", "b")
    run.reports("c")
    commands = run.give(UpdateRejected("c", 1, 1, update("c"), "NaN"))
    assert receipt(commands).status == "refused"
    assert receipt(commands).reason == "NaN"
    assert DiscardUpdate(update("c").key) in commands
    commands = run.give(DeviceDeclined("d", "train", 1, 1, "no space"))
    assert commands == [Aggregate(1, 1, ("a", "b"))]


def test_below_the_quorum_the_dead_are_waited_for_until_the_deadline() -> None:
    run = Run.of("a", "b", "c")
    run.counts("a")
    run.give(DeviceLeft("b"), DeviceLeft("c"))
    assert run.phase == "collecting"


def test_the_deadline_closes_with_a_quorum() -> None:
    run = Run.of("a", "b", "c")
    run.counts("c", "b")
    assert run.fires("deadline") == [Aggregate(1, 1, ("b", "c"))]


def test_the_deadline_without_a_quorum_makes_a_new_attempt() -> None:
    run = Run.of("a", "b", "c")
    run.counts("a")
    commands = run.fires("deadline")
    assert run.now == (1, 2)
    assert commands[0] == SweepRound(1, 1)
    assert SendOrder("a", "train", 1, 2) in commands
    assert not run.machine.ledger.accepted


def test_max_attempts_fails_the_run() -> None:
    run = Run.of("a", "b", "c", max_attempts=2)
    run.fires("deadline")
    assert run.fires("deadline") == [SweepRun()]
    assert run.machine.ledger.status == "failed"
    assert "0 of at least 2" in run.machine.ledger.reason


def test_a_timer_of_another_attempt_has_no_effect() -> None:
    run = Run.of("a", "b", "c")
    run.fires("deadline")
    assert run.give(TimerFired("deadline", 1, 1)) == []
    assert run.now == (1, 2)


def test_a_device_that_says_ready_gets_its_order_again_until_it_has_answered() -> None:
    run = Run.of("a", "b", "c")
    assert run.join("a") == [SendOrder("a", "train", 1, 1)]
    run.reports("a")
    assert run.join("a") == []
    run.verifies("a")
    assert run.join("a") == []


def test_an_order_is_renewed_on_request_only_while_it_is_owed() -> None:
    run = Run.of("a", "b", "c")
    assert run.give(OrderRequested("a", "train", 1, 1)) == [SendOrder("a", "train", 1, 1)]
    assert run.give(OrderRequested("x", "train", 1, 1)) == []
    run.fires("deadline")
    assert run.give(OrderRequested("a", "train", 1, 1)) == []


# --- duplicates, late and stale ---------------------------------------------------------------


def test_a_duplicate_gets_the_same_receipt_and_counts_once() -> None:
    run = Run.of("a", "b", "c")
    run.counts("a")
    assert receipt(run.reports("a")).status == "accepted"
    run.counts("b")
    run.fires("deadline")
    assert receipt(run.give(ResultReceived("a", 1, 1, update("a")))).status == "accepted"
    included = [fact.included for fact in run.facts if isinstance(fact, RoundClosed)]
    assert included == [("a", "b")]


def test_a_duplicate_while_it_is_checked_waits_for_the_check() -> None:
    run = Run.of("a", "b", "c")
    run.reports("a")
    assert run.reports("a") == []
    assert receipt(run.verifies("a")).status == "accepted"
    assert run.verifies("a") == []


def test_other_bytes_of_a_counted_device_are_refused_and_not_deleted() -> None:
    run = Run.of("a", "b", "c")
    run.counts("a")
    commands = run.give(ResultReceived("a", 1, 1, update("a", header="b")))
    assert receipt(commands).status == "refused"
    assert not of_type(commands, DiscardUpdate)


def test_a_counted_update_stored_again_after_its_sweep_is_deleted() -> None:
    run = Run.of("a", "b", "c")
    run.counts("a", "b", "c")
    run.commits()
    commands = run.give(ResultReceived("a", 1, 1, update("a")))
    assert receipt(commands).status == "accepted"
    assert DiscardUpdate(update("a").key) in commands


@pytest.mark.parametrize("when", ["aggregating", "next round", "next attempt", "ended"])
def test_a_late_result_is_answered_and_deleted(when: str) -> None:
    run = Run.of("a", "b", "c", "d", cohort_size=3, over_selection=1.3)
    pair = run.now
    if when == "next attempt":
        run.fires("deadline")
    else:
        run.counts("a", "b", "c")
    if when == "next round":
        run.commits()
    if when == "ended":
        run.give(StopRequested())
    commands = run.give(ResultReceived("d", *pair, update("d", *pair)))
    assert receipt(commands).status == "late"
    assert of_type(commands, DiscardUpdate) == [DiscardUpdate(update("d", *pair).key)]


def test_a_check_that_ends_after_the_round_closed_is_late() -> None:
    run = Run.of("a", "b", "c")
    run.counts("a", "b")
    run.reports("c")
    run.fires("deadline")
    commands = run.verifies("c")
    assert receipt(commands).status == "late"
    assert DiscardUpdate(update("c").key) in commands


def test_a_result_of_a_future_round_is_unknown() -> None:
    run = Run.of("a", "b", "c")
    assert receipt(run.give(ResultReceived("a", 2, 1, update("a", 2)))).status == "unknown"


def test_a_result_from_outside_the_cohort_is_refused_and_deleted() -> None:
    run = Run.of("a", "b", "c")
    commands = run.reports("x")
    assert receipt(commands).reason == "not in this round's cohort"
    assert DiscardUpdate(update("x").key) in commands


def test_a_sum_of_another_attempt_is_not_committed() -> None:
    run = Run.of("a", "b", "c")
    run.counts("a", "b", "c")
    run.give(AggregationFailed(1, 1, "no space"))
    assert run.now == (1, 2)
    run.counts("a", "b", "c")
    assert run.give(AggregationFinished(1, 1, model(1))) == []
    assert run.machine.ledger.model == INITIAL


# --- what vanishes ----------------------------------------------------------------------------


def test_a_withdrawn_update_is_ordered_again() -> None:
    run = Run.of("a", "b", "c")
    run.counts("a")
    vanished = UpdateVanished("a", 1, 1, "not found")
    assert run.give(vanished) == [SendOrder("a", "train", 1, 1)]
    assert not run.machine.ledger.accepted
    assert run.counts("a")[0] == SendReceipt("a", "train", 1, 1, "accepted")


def test_an_update_that_vanishes_while_aggregating_makes_a_new_attempt() -> None:
    run = Run.of("a", "b", "c")
    run.counts("a", "b", "c")
    run.give(UpdateVanished("b", 1, 1, "not found"))
    assert run.now == (1, 2)
    assert run.phase == "collecting"


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


# --- restart ----------------------------------------------------------------------------------


def test_a_restart_arms_the_deadline_in_full_and_adds_the_accepted_again() -> None:
    run = Run.of("a", "b", "c")
    run.counts("a")
    assert run.restart() == [
        FoldUpdate("a", 1, 1, update("a")),
        ArmTimer("deadline", 1, 1, run.plan.deadline_s),
        ArmTimer("resend", 1, 1, RESEND_S),
    ]
    assert run.join("a") == []
    assert run.join("b") == [SendOrder("b", "train", 1, 1)]


def test_a_restart_while_aggregating_aggregates_the_same_again() -> None:
    run = Run.of("a", "b", "c")
    run.counts("a", "b", "c")
    commands = run.restart()
    assert [type(c) for c in commands] == [FoldUpdate, FoldUpdate, FoldUpdate, Aggregate]
    assert commands[-1] == Aggregate(1, 1, ("a", "b", "c"))


def test_a_restart_while_gathering_waits_for_devices() -> None:
    run = Run.of("a", "b")
    assert run.restart() == []
    assert run.join("a") == []
    assert run.join("b") == [ArmTimer("gather", 1, 1, run.plan.gather_s)]


def test_a_restart_in_the_last_evaluation_arms_its_timer() -> None:
    run = Run.of("a", "b", "c", "e1")
    finish(run)
    assert run.restart() == [
        ArmTimer("evaluation", 2, 1, run.plan.evaluation_deadline_s),
        ArmTimer("resend", 2, 1, RESEND_S),
    ]


def test_a_restart_of_an_ended_run_sweeps_again() -> None:
    run = Run.of("a", "b", "c")
    run.give(StopRequested())
    assert run.restart() == [SweepRun()]


def test_a_restart_closes_what_was_complete() -> None:
    """The facts of a step may be all that was left of it."""
    run = Run.of("a", "b", "c")
    run.counts("a", "b", "c")
    assert isinstance(run.facts.pop(), RoundClosed)
    assert Aggregate(1, 1, ("a", "b", "c")) in run.restart()


def test_a_result_lost_with_the_server_is_checked_when_it_comes_again() -> None:
    run = Run.of("a", "b", "c")
    run.reports("a")
    run.restart()
    assert run.reports("a") == [VerifyUpdate("a", 1, 1, update("a"))]


# --- the same refusal again and again ---------------------------------------------------------


def refuses(run: Run, reason: str, *devices: str) -> list[Command]:
    """Have the updates of devices refused, each for a reason with numbers of its own."""
    for number, device_id in enumerate(devices):
        run.reports(device_id)
        said = reason.format(number + 10 * run.now[1])
        run.give(UpdateRejected(device_id, *run.now, update(device_id, *run.now), said))
    return run.last.commands


NAN = "parameter {} is not finite"


def test_an_attempt_whose_every_update_was_refused_does_not_wait_for_its_deadline() -> None:
    run = Run.of("a", "b", "c")
    refuses(run, NAN, "b", "a")
    assert run.phase == "collecting"
    assert ordered(refuses(run, NAN, "c")) == {"a", "b", "c"}
    assert run.now == (1, 2)
    abandoned = run.facts[-2]
    assert isinstance(abandoned, RoundAbandoned)
    assert abandoned.reason == "every update was refused; that of a: parameter 11 is not finite"


def test_the_same_refusal_of_every_member_in_two_attempts_ends_the_run() -> None:
    run = Run.of("a", "b", "c")
    refuses(run, NAN, "a", "b", "c")
    assert SweepRun() in refuses(run, NAN, "c", "a", "b")
    failed = run.facts[-1]
    assert isinstance(failed, RunFailed)
    assert "round 1, attempt 2" in failed.reason
    assert "that of a: parameter 21 is not finite" in failed.reason


def test_a_restart_between_the_attempts_forgets_no_refusal() -> None:
    run = Run.of("a", "b", "c")
    refuses(run, NAN, "a", "b", "c")
    run.restart()
    run.join("a", "b", "c")
    refuses(run, NAN, "a", "b")
    run.restart()
    refuses(run, NAN, "c")
    assert isinstance(run.facts[-1], RunFailed)


def test_the_reason_of_the_last_refusal_is_enough_after_a_restart() -> None:
    """The facts of a step may be all that was left of it."""
    run = Run.of("a", "b", "c")
    refuses(run, NAN, "a", "b", "c")
    while not isinstance(run.facts[-1], UpdateRefused):
        run.facts.pop()
    run.restart()
    assert run.now == (1, 2)


def test_a_device_that_trained_to_no_use_counts_as_one_that_was_refused() -> None:
    run = Run.of("a", "b", "c")
    for _ in range(2):
        assert run.phase == "collecting"
        for name in ("a", "b", "c"):
            run.give(DeviceDeclined(name, "train", *run.now, "training diverged", unusable=True))
    assert isinstance(run.facts[-1], RunFailed)
    assert "training diverged" in run.machine.ledger.reason


def test_devices_that_take_no_order_now_may_take_a_later_one() -> None:
    run = Run.of("a", "b", "c")
    for attempt in (1, 2, 3):
        assert run.now == (1, attempt)
        for name in ("a", "b", "c"):
            run.give(DeviceDeclined(name, "train", *run.now, "too hot"))
        assert run.phase == "gathering"
        run.fires("rest")
    assert run.machine.ledger.status == "running"


@pytest.mark.parametrize("between", ["another reason", "one that counts", "one that is busy"])
def test_what_is_not_the_same_twice_in_a_row_is_tried_again(between: str) -> None:
    run = Run.of("a", "b", "c")
    refuses(run, NAN, "a", "b", "c")
    match between:
        case "another reason":
            refuses(run, "chunk {} is damaged", "a", "b", "c")
        case "one that counts":
            refuses(run, NAN, "a", "b")
            run.counts("c")
        case "one that is busy":
            refuses(run, NAN, "a", "b")
            run.give(DeviceDeclined("c", "train", *run.now, NAN.format(1)))
    assert run.now == (1, 3)
    refuses(run, NAN, "a", "b", "c")
    assert run.now == (1, 4)
    refuses(run, NAN, "a", "b", "c")
    assert isinstance(run.facts[-1], RunFailed)


def test_a_refusal_in_one_round_is_not_one_in_the_next() -> None:
    run = Run.of("a", "b", "c")
    refuses(run, NAN, "a", "b", "c")
    run.counts("a", "b", "c")
    run.commits()
    refuses(run, NAN, "a", "b", "c")
    assert run.now == (2, 2)


def test_a_fact_of_before_says_nothing_of_use() -> None:
    """Facts that were journalled before have no ``unusable``."""
    assert OrderDeclined(**{"round": 1, "attempt": 1, "device_id": "a", "reason": "b"}) == (
        OrderDeclined(1, 1, "a", "b", unusable=False)
    )


# --- the ledger -------------------------------------------------------------------------------


def test_the_attempt_never_goes_back() -> None:
    run = Run.of("a", "b", "c", "e1", rounds=1)
    run.fires("deadline")
    run.counts("a", "b", "c")
    run.commits()
    assert run.phase == "evaluating"
    assert run.now == (1, 2)


def every_fact() -> list[Fact]:
    return [
        RoundOpened(1, 1, model(0)),
        RoundStarted(1, 1, ("a",), 1),
        UpdateAccepted(1, 1, "a", update("a")),
        UpdateRefused(1, 1, "a", "NaN"),
        UpdateWithdrawn(1, 1, "a", "gone"),
        OrderDeclined(1, 1, "a", "busy"),
        RoundClosed(1, 1, ()),
        RoundAbandoned(1, 1, "deadline"),
        RoundCommitted(1, 1, model(1)),
        EvaluationOrdered(1, ("a",)),
        EvaluationDeclined(1, "a", "metrics() raised"),
        EvaluationRecorded(1, "a", 5, {}),
        RunPaused(),
        RunResumed(),
        RunCompleted(),
        RunStopped("stop"),
        RunFailed("fail"),
    ]


def test_every_fact_has_a_place() -> None:
    assert {type(fact) for fact in every_fact()} == set(FACTS.values())


@pytest.mark.parametrize("phase", LEGAL)
def test_an_illegal_fact_raises_and_changes_nothing(phase: Phase) -> None:
    for fact in every_fact():
        if type(fact) in LEGAL[phase]:
            continue
        ledger = Ledger(3, INITIAL, phase=phase)
        with pytest.raises(InvalidTransition):
            ledger.apply(fact)
        assert ledger == Ledger(3, INITIAL, phase=phase)


@pytest.mark.parametrize(
    "fact",
    [
        UpdateAccepted(1, 2, "b", update("b", 1, 2)),
        UpdateAccepted(1, 1, "a", update("a")),
        UpdateAccepted(1, 1, "x", update("x")),
        UpdateRefused(1, 1, "a", "NaN"),
        OrderDeclined(1, 1, "x", "busy"),
        UpdateWithdrawn(1, 1, "b", "gone"),
        RoundClosed(1, 1, ("a", "b")),
        RoundAbandoned(2, 1, "deadline"),
    ],
    ids=lambda fact: f"{type(fact).__name__}-{getattr(fact, 'device_id', '')}",
)
def test_a_fact_that_contradicts_the_books_raises(fact: Fact) -> None:
    ledger = Ledger(3, INITIAL)
    ledger.apply(RoundStarted(1, 1, ("a", "b"), 2))
    ledger.apply(UpdateAccepted(1, 1, "a", update("a")))
    with pytest.raises(InvalidTransition):
        ledger.apply(fact)


def test_a_version_is_committed_only_in_its_round() -> None:
    ledger = Ledger(3, INITIAL)
    ledger.apply(RoundStarted(1, 1, ("a",), 1))
    ledger.apply(UpdateAccepted(1, 1, "a", update("a")))
    ledger.apply(RoundClosed(1, 1, ("a",)))
    with pytest.raises(InvalidTransition):
        ledger.apply(RoundCommitted(1, 1, model(2)))
