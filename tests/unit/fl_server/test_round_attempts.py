"""The round machine: restarts, and attempts that end in the same refusal again and again."""

from __future__ import annotations

import pytest

from fl_server.flows.commands import ArmTimer
from fl_server.flows.events import DeviceDeclined, StopRequested
from fl_server.rounds.commands import (
    Aggregate,
    Command,
    FoldUpdate,
    SendOrder,
    SweepRun,
    VerifyUpdate,
)
from fl_server.rounds.events import UpdateRejected
from fl_server.rounds.facts import (
    OrderDeclined,
    RoundAbandoned,
    RoundClosed,
    RunFailed,
    UpdateRefused,
)
from fl_server.rounds.machine import RESEND_S
from runtime.bounds import MAX_ROUNDS
from tests.rounds import Run, finish, ordered, update

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
    assert commands[-1] == Aggregate(1, 1, ("a", "b", "c"), 3)


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
    assert Aggregate(1, 1, ("a", "b", "c"), 3) in run.restart()


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


def test_no_attempt_has_a_number_that_no_message_holds() -> None:
    """Attempts after which devices declined for now have no other end."""
    run = Run.of("a", "b", "c")
    run.machine.ledger.attempt = MAX_ROUNDS
    declined = [
        DeviceDeclined(device_id, "train", 1, MAX_ROUNDS, "the battery is low")
        for device_id in ("a", "b", "c")
    ]
    run.give(*declined)
    assert isinstance(run.facts[-1], RunFailed)
    assert run.machine.ledger.reason.startswith(f"round 1, attempt {MAX_ROUNDS}: 0 of at least 2")


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
