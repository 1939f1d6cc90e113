"""A run's ledger: which facts may follow, and what an illegal one changes."""

from __future__ import annotations

import pytest

from fl_server.rounds.facts import (
    FACTS,
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
from fl_server.rounds.ledger import LEGAL, Ledger
from fl_server.rounds.plan import Phase
from runtime.errors import InvalidTransition
from tests.rounds import INITIAL, Run, model, update


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
        RequestFailed(1, 1, "round 1, attempt 1: refused"),
        RoundCommitted(1, 1, model(1)),
        EvaluationOrdered(1, ("a",)),
        EvaluationDeclined(1, "a", "metrics() raised"),
        EvaluationRecorded(1, "a", 5, {}),
        VersionJudged(1, 1 / 3, True),
        RunPaused(),
        RunResumed(),
        RunCompleted(),
        RunStoppedEarly("no better version"),
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
        RequestFailed(1, 1, "of a run that nobody requests rounds of"),
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
