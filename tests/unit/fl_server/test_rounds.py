"""The round machine's rules, one by one and by name."""

from __future__ import annotations

import pytest

from fl_server.flows.commands import ArmTimer, SendReceipt
from fl_server.flows.events import (
    DeviceDeclined,
    DeviceJoined,
    DeviceLeft,
    OrderRequested,
    PauseRequested,
    ResumeRequested,
    StopRequested,
    TimerFired,
)
from fl_server.flows.flow import Step
from fl_server.rounds.commands import (
    Aggregate,
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
    ResultReceived,
    UpdateRejected,
    UpdateVanished,
)
from fl_server.rounds.facts import RoundClosed, RoundStarted, UpdateRefused
from fl_server.rounds.machine import RESEND_S
from tests.rounds import INITIAL, Run, model, of_type, ordered, receipt, update

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
    assert of_type(commands, Aggregate) == [Aggregate(1, 1, ("a", "b"), 3)]


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
    assert of_type(run.counts("a", "b", "c"), Aggregate) == [Aggregate(1, 1, ("a", "b", "c"), 3)]


def test_a_quorum_closes_the_round_when_all_that_live_have_answered() -> None:
    run = Run.of("a", "b", "c")
    run.counts("a", "b")
    assert run.phase == "collecting"
    assert run.give(DeviceLeft("c")) == [Aggregate(1, 1, ("a", "b"), 3)]


def test_who_reports_and_leaves_is_waited_for_until_its_update_is_checked() -> None:
    run = Run.of("a", "b", "c")
    run.reports("c")
    run.give(DeviceLeft("c"))
    run.counts("a", "b")
    assert run.phase == "collecting"
    assert Aggregate(1, 1, ("a", "b", "c"), 3) in run.verifies("c")


def test_a_report_that_is_not_usable_is_refused_with_its_fault() -> None:
    run = Run.of("a", "b", "c")
    run.counts("a", "b")
    commands = run.give(ResultReceived("c", 1, 1, update("c"), "not its own key"))
    assert receipt(commands).reason == "not its own key"
    assert DiscardUpdate(update("c").key) in commands
    assert Aggregate(1, 1, ("a", "b"), 3) in commands
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
    assert commands == [Aggregate(1, 1, ("a", "b"), 4)]


def test_below_the_quorum_the_dead_are_waited_for_until_the_deadline() -> None:
    run = Run.of("a", "b", "c")
    run.counts("a")
    run.give(DeviceLeft("b"), DeviceLeft("c"))
    assert run.phase == "collecting"


def test_the_deadline_closes_with_a_quorum() -> None:
    run = Run.of("a", "b", "c")
    run.counts("c", "b")
    assert run.fires("deadline") == [Aggregate(1, 1, ("b", "c"), 3)]


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


def test_a_run_knows_who_is_there_and_who_ever_was_in_a_cohort() -> None:
    run = Run.of("a", "b", "c", gather_s=0.0)
    run.counts("a", "b", "c")
    run.give(DeviceLeft("c"))
    run.commits()
    run.join("d")
    run.fires("gather")
    started = of_type(run.facts, RoundStarted)
    assert [fact.population for fact in started] == [3, 4]
    run.restart()
    assert run.machine.ledger.known == {"a", "b", "c", *started[1].cohort}
