"""A run's best version: when it is judged, what it takes to be better, and when the run ends."""

from __future__ import annotations

from typing import Any

import pytest

from fl_server.flows.events import DeviceDeclined, DeviceLeft, StopRequested
from fl_server.rounds.commands import SweepRun, TagBest
from fl_server.rounds.events import EvaluationReceived
from fl_server.rounds.facts import RunStoppedEarly, VersionJudged
from fl_server.rounds.plan import BestRule
from fl_server.runs.definition import parse_definition
from runtime.errors import ConfigError
from tests.rounds import Run

RULE = BestRule("accuracy", min_delta=0.01, patience=2)


def begun(*evaluators: str, rounds: int = 9, best: BestRule = RULE) -> Run:
    return Run.of("a", "b", "c", *(evaluators or ("e1",)), rounds=rounds, best=best)


def commits(run: Run, *values: float | None, device: str = "e1") -> None:
    """Commit a version for each value, and measure it at once where it is not None."""
    for value in values:
        run.counts("a", "b", "c")
        run.commits()
        if value is not None:
            measures(run, run.machine.ledger.model.version, value, device)


def measures(run: Run, version: int, value: float, device: str = "e1", count: int = 10) -> None:
    run.give(EvaluationReceived(device, version, 1, count, {"accuracy": value, "loss": 1 - value}))


def judged(run: Run) -> list[VersionJudged]:
    return [fact for fact in run.facts if isinstance(fact, VersionJudged)]


def test_the_better_version_becomes_the_best_and_is_tagged() -> None:
    run = begun()
    commits(run, 0.5)
    assert run.last.commands[-1] == TagBest(1)
    commits(run, 0.505)
    assert TagBest(2) not in run.last.commands, "not better by more than min_delta"
    commits(run, 0.52)
    assert run.machine.ledger.best == (3, 0.52)
    assert [fact.is_best for fact in judged(run)] == [True, False, True]


def test_lower_may_be_better() -> None:
    run = begun(best=BestRule("loss", lower=True))
    commits(run, 0.5, 0.4, 0.6)
    assert run.machine.ledger.best == (3, pytest.approx(0.4))


def test_without_a_better_version_for_its_patience_the_run_is_completed() -> None:
    run = begun()
    commits(run, 0.5, 0.6, 0.55, 0.6)
    ledger = run.machine.ledger
    assert (ledger.status, ledger.phase, ledger.model.version) == ("completed", "ended", 4)
    assert ledger.best == (2, 0.6)
    assert isinstance(run.facts[-1], RunStoppedEarly)
    assert "no version up to 4 was better than version 2 (accuracy 0.6)" in ledger.reason
    assert run.last.commands[-1] == SweepRun()
    assert run.restart() == [TagBest(2), SweepRun()], "what a crash may have prevented"


def test_patience_counts_rounds_where_not_every_version_is_measured() -> None:
    run = Run.of("a", "b", "c", "e1", rounds=9, best=RULE, evaluate_every=3)
    commits(run, None, None, 0.5, None, None)
    assert run.machine.ledger.status == "running"
    commits(run, 0.5)
    assert run.machine.ledger.status == "completed"


def test_a_version_is_judged_when_all_who_measure_it_have_answered() -> None:
    run = begun("e1", "e2")
    commits(run, 0.9)
    assert not judged(run)
    measures(run, 1, 0.3, "e2", count=30)
    assert judged(run) == [VersionJudged(1, pytest.approx(0.45), True)]


@pytest.mark.parametrize(
    "event",
    [DeviceLeft("e2"), DeviceDeclined("e2", "evaluate", 1, 1, "too hot")],
    ids=["left", "declined"],
)
def test_nobody_is_waited_for_who_will_not_measure_it(event: Any) -> None:
    run = begun("e1", "e2")
    commits(run, 0.9)
    run.give(event)
    assert judged(run) == [VersionJudged(1, 0.9, True)]


def test_a_slow_evaluator_holds_up_no_round_and_versions_are_judged_in_order() -> None:
    run = begun("e1", "e2")
    commits(run, 0.5, 0.4)
    assert not judged(run)
    # of version 1 it says nothing any more: too many waited
    measures(run, 2, 0.4, "e2")
    assert [(fact.round, fact.value) for fact in judged(run)] == [(1, 0.5), (2, 0.4)]
    measures(run, 1, 0.0, "e2")
    assert run.machine.ledger.metric(1, "accuracy") == 0.25, "what comes late is shown"
    assert run.machine.ledger.best == (1, 0.5), "and changes no verdict"


def test_a_device_that_hangs_is_waited_for_until_three_later_versions_are_ordered() -> None:
    run = begun("e1", "e2")
    commits(run, 0.5, 0.6, 0.4)
    assert not judged(run)
    commits(run, 0.4)
    assert [fact.round for fact in judged(run)] == [1]
    commits(run, 0.4)
    assert run.machine.ledger.best == (2, 0.6)


def test_a_version_that_nobody_measured_waits_for_who_comes_until_the_next() -> None:
    run = begun()
    commits(run, None)
    run.give(DeviceLeft("e1"))
    assert not judged(run)
    run.join("e1")
    measures(run, 1, 0.5)
    assert judged(run) == [VersionJudged(1, 0.5, True)]
    commits(run, None)
    run.give(DeviceLeft("e1"))
    commits(run, None)
    run.join("e1")
    measures(run, 3, 0.4)
    assert judged(run)[1:] == [VersionJudged(2, None, False), VersionJudged(3, 0.4, False)]


def test_what_may_become_the_best_is_held_and_after_the_end_the_best_alone() -> None:
    run = begun("e1", "e2")
    commits(run, 0.5)
    measures(run, 1, 0.5, "e2")
    commits(run, 0.4, 0.4)
    assert run.machine.held == {1, 2, 3}
    run.restart()
    assert run.machine.held == {1, 2, 3}
    run.give(StopRequested("enough"))
    assert [fact.round for fact in judged(run)] == [1, 2, 3], "by what there is"
    assert run.machine.held == {1}


def test_the_last_version_is_compared_too() -> None:
    run = begun(rounds=2)
    commits(run, 0.5, 0.6)
    assert (run.machine.ledger.status, run.machine.ledger.best) == ("completed", (2, 0.6))
    assert run.last.commands[-2:] == [TagBest(2), SweepRun()]


def test_without_a_rule_nothing_is_judged() -> None:
    run = Run.of("a", "b", "c", "e1", rounds=2)
    commits(run, 0.5, 0.4)
    assert not judged(run)
    assert run.machine.held == frozenset()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, None),
        ({"best": {"min_delta": 0.1}}, None),
        ({"best": {"keep": True}}, BestRule("accuracy")),
        ({"best": {"patience": 3, "metric": "loss"}}, BestRule("loss", True, 0.0, 3)),
        (
            {"best": {"keep": True}, "evaluation": {"metrics": {"mae": "lower"}}},
            BestRule("mae", True),
        ),
        (
            {
                "best": {"patience": 1, "metric": "gap_loss"},
                "evaluation": {"metrics": {"mae": "lower", "gap_loss": "higher"}},
            },
            BestRule("gap_loss", False, 0.0, 1),
        ),
    ],
)
def test_the_rule_is_the_definitions(values: Any, expected: BestRule | None) -> None:
    definition = parse_definition({"task": "t", **values}, "test")
    assert definition.plan("r", evaluators_online=False).best == expected


def test_a_best_that_nobody_could_measure_is_refused() -> None:
    with pytest.raises(ConfigError, match=r'evaluation\.on is "none"'):
        parse_definition(
            {"task": "t", "best": {"keep": True}, "evaluation": {"on": "none"}}, "test"
        )
