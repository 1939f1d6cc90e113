"""Whom a round waits for, and for how long: declines, silence, departures, lost orders."""

from __future__ import annotations

from fl_server.flows.commands import ArmTimer
from fl_server.flows.events import (
    DeviceBusy,
    DeviceDeclined,
    DeviceLeft,
)
from fl_server.rounds.commands import (
    Aggregate,
    Command,
    SendOrder,
)
from fl_server.rounds.facts import (
    RoundAbandoned,
)
from fl_server.rounds.machine import RESEND_S
from tests.rounds import Run, finish, ordered


def declines(run: Run, reason: str, *devices: str, permanent: bool = False) -> list[Command]:
    for name in devices:
        run.give(DeviceDeclined(name, "train", *run.now, reason, permanent=permanent))
    return run.last.commands


def test_an_attempt_that_all_decline_ends_at_once() -> None:
    run = Run.of("a", "b", "c")
    declines(run, "too hot", "a", "b", "c")
    assert run.phase == "gathering"
    [abandoned] = [fact for fact in run.facts if isinstance(fact, RoundAbandoned)]
    assert abandoned.excused
    assert "a declined (and 2 more): too hot" in abandoned.reason
    assert "too hot" in run.machine.ledger.explanation, "a waiting run says what it waits for"


def test_a_task_that_raises_everywhere_fails_the_run_after_two_attempts() -> None:
    run = Run.of("a", "b", "c")
    for _ in range(2):
        assert run.phase == "collecting"
        declines(run, "NameError: name 'modle' (task.py:7)", "a", "b", "c", permanent=True)
    assert run.machine.ledger.status == "failed"
    assert "NameError: name 'modle'" in run.machine.ledger.reason


def test_what_declines_for_now_is_asked_again_ever_more_rarely_and_fails_nothing() -> None:
    run = Run.of("a", "b", "c", max_attempts=2, deadline_s=60.0)
    for _ in range(40):
        declines(run, "works at 22:00-06:00 only", "a", "b", "c")
        assert run.phase == "gathering"
        run.fires("rest")
    assert run.phase == "collecting"
    assert run.now == (1, 41)
    run.counts("a", "b", "c")
    assert run.phase == "aggregating"


def test_the_rests_double_up_to_a_quarter_of_an_hour() -> None:
    run = Run.of("a", "b", "c", deadline_s=60.0)
    rests = []
    for _ in range(7):
        commands = declines(run, "too hot", "a", "b", "c")
        rests += [c.seconds for c in commands if isinstance(c, ArmTimer) and c.timer == "rest"]
        run.fires("rest")
    assert rests == [60, 120, 240, 480, 900, 900, 900]


def test_who_declined_in_a_round_rests_longer_than_who_declined_before_it() -> None:
    run = Run.of("a", "b", "c", quorum=3)
    declines(run, "busy", "a", "b", "c")
    run.join("d", "f", "g")
    assert run.machine.ledger.cohort == ("d", "f", "g")
    declines(run, "busy", "d")
    run.fires("rest")  # armed for a, b and c
    run.fires("deadline")
    assert run.now == (1, 3)
    assert run.phase == "gathering", "all but f and g rest"
    assert ordered(run.fires("rest")), "and are asked when the rest of this attempt is over"


def test_a_device_that_was_away_is_asked_before_its_rest_is_over() -> None:
    run = Run.of("a", "b", "c")
    declines(run, "busy", "a", "b", "c")
    assert run.join("a", "b", "c") == [], "that they are still there is no news"
    run.give(*(DeviceLeft(name) for name in "abc"))
    run.join("a", "b", "c")
    assert run.phase == "collecting"


def test_attempts_that_others_left_undone_still_count() -> None:
    run = Run.of("a", "b", "c", max_attempts=2)
    run.give(DeviceDeclined("a", "train", 1, 1, "too hot"))
    run.fires("deadline")
    assert run.now == (1, 2)
    run.fires("gather")
    run.fires("deadline")
    assert run.machine.ledger.status == "failed"


def test_those_that_left_are_waited_for_only_for_a_while() -> None:
    run = Run.of("a", "b", "c")
    run.give(DeviceLeft("a"), DeviceLeft("b"))
    commands = run.give(DeviceLeft("c"))
    assert commands == [ArmTimer("return", 1, 1, run.plan.gather_s)]
    assert run.join("b") == [SendOrder("b", "train", 1, 1)]
    assert run.fires("return") == []
    run.give(DeviceLeft("b"))
    run.fires("return")
    assert run.now == (1, 2)


def test_a_revoked_device_costs_no_wait() -> None:
    run = Run.of("a", "b", "c")
    run.counts("a", "b")
    assert run.give(DeviceLeft("c", for_good=True)) == [Aggregate(1, 1, ("a", "b"), 3)]
    assert ordered(run.commits()) == {"a", "b"}, "nobody is waited for to gather"


def test_a_device_that_left_costs_one_wait_to_gather() -> None:
    run = Run.of("a", "b", "c", rounds=5)
    run.counts("a", "b")
    run.give(DeviceLeft("c"))
    assert not ordered(run.commits())
    run.fires("gather")
    for _ in range(2):
        run.counts("a", "b")
        assert ordered(run.commits()) == {"a", "b"}
    run.counts("a", "b")
    run.join("c")
    run.commits()
    assert run.machine.ledger.cohort == ("a", "b", "c")


def test_a_silent_device_costs_one_deadline_until_it_is_heard() -> None:
    run = Run.of("a", "b", "c", rounds=9)
    run.counts("a", "b")
    assert run.phase == "collecting"
    run.fires("deadline")
    run.commits()
    for _ in range(2):
        assert run.machine.ledger.cohort == ("a", "b", "c"), "there are not enough others"
        run.counts("a", "b")
        assert run.phase == "aggregating", "nobody waits for who is silent"
        run.commits()
    run.give(DeviceBusy("c"))
    run.counts("a", "b")
    assert run.phase == "collecting"


def test_a_silent_device_is_not_invited_where_there_are_others() -> None:
    run = Run.of("a", "b", "c", rounds=9)
    run.counts("a", "b")
    run.fires("deadline")
    run.join("d", "e")
    for _ in range(6):  # by chance it would be left out of all of them once in 200
        run.commits()
        assert "c" not in run.machine.ledger.cohort
        run.counts(*run.machine.ledger.cohort)


def test_an_order_that_was_lost_is_sent_again_to_who_does_nothing() -> None:
    run = Run.of("a", "b", "c", "d", cohort_size=4)
    run.counts("a")
    run.give(DeviceBusy("b"), DeviceLeft("d"))
    assert run.fires("resend") == [
        SendOrder("c", "train", 1, 1),
        ArmTimer("resend", 1, 1, RESEND_S),
    ]
    run.restart()
    run.join("c")
    assert SendOrder("c", "train", 1, 1) in run.fires("resend")


def test_a_lost_order_to_evaluate_is_sent_again_too() -> None:
    run = Run.of("a", "b", "c", "e1")
    finish(run)
    assert run.fires("resend") == [
        SendOrder("e1", "evaluate", 2, 1),
        ArmTimer("resend", 2, 1, RESEND_S),
    ]
