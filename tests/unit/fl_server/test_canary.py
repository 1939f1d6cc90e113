"""What a canary compares, how it decides, and in which words."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import pytest

from fl_server.canary.events import (
    ATTEMPT_OF,
    ROUND,
    CanaryPlan,
    CandidateMarked,
    DeadlinePassed,
    Fact,
    Judged,
    OrderSide,
    OrdersOpened,
    Settled,
    SideDeclined,
    SideMeasured,
    Verdict,
)
from fl_server.canary.machine import CanaryMachine, choose, quorum_of
from fl_server.canary.messages import order_of, shown
from fl_server.canary.state import CanaryState, judge, lower_is_better
from fl_server.deployment.canaries import record_of
from fl_server.flows.events import DeviceJoined
from fl_server.kinds.canary import CanaryKind
from fl_server.persistence.database import sa
from fl_server.persistence.journal import DamagedRun, Journal
from fl_server.rounds.events import EvaluationReceived
from rengo.cli.operator import canary as command
from rengo.operator.canary import CanaryTrial
from runtime.errors import ConfigError, InvalidTransition
from tests.property.machine_canary import plan_of

PLAN = plan_of(("e1", "e2", "e3"), 2, max_drop=0.01)


def state_of(plan: CanaryPlan, *rows: tuple[str, int, float | None, float | None]) -> CanaryState:
    """Return what was measured: (device, examples, candidate, production)."""
    state = CanaryState(plan.cohort)
    state.apply(OrdersOpened())
    for device_id, examples, candidate, production in rows:
        for side, value in (("candidate", candidate), ("production", production)):
            metrics = {} if value is None else {plan.metric: value}
            state.apply(SideMeasured(device_id, side, examples, metrics))  # type: ignore[arg-type]
    return state


@pytest.mark.parametrize(
    ("candidate", "production", "metric", "max_drop", "verdict"),
    [
        (0.95, 0.96, "accuracy", 0.01, "promoted"),
        (0.9499, 0.96, "accuracy", 0.01, "rolled_back"),
        (0.97, 0.96, "accuracy", 0.0, "promoted"),
        (0.96, 0.96, "accuracy", 0.0, "promoted"),
        (0.26, 0.25, "loss", 0.01, "promoted"),
        (0.27, 0.25, "loss", 0.01, "rolled_back"),
        (0.20, 0.25, "val_loss", 0.0, "promoted"),
        (1e39, -1e39, "loss", 0.1, "rolled_back"),
    ],
)
def test_the_verdict(
    candidate: float, production: float, metric: str, max_drop: float, verdict: Verdict
) -> None:
    plan = replace(PLAN, metric=metric, max_drop=max_drop)
    rows = [(name, 10, candidate, production) for name in plan.cohort]
    assert judge(plan, state_of(plan, *rows)).verdict == verdict


def test_devices_count_by_their_examples_and_only_in_pairs() -> None:
    state = state_of(PLAN, ("e1", 30, 0.9, 0.8), ("e2", 10, 0.5, 0.8))
    state.apply(SideMeasured("e3", "candidate", 1000, {"accuracy": 0.0}))
    judged = judge(PLAN, state)
    assert judged.candidate_mean == pytest.approx(0.8)
    assert judged.production_mean == pytest.approx(0.8)
    assert (judged.verdict, judged.pairs) == ("promoted", 2)


def test_why_in_words() -> None:
    state = state_of(PLAN, ("e1", 10, 0.9, 0.95), ("e2", 20, 0.9, 0.95))
    assert judge(PLAN, state).reason == (
        "accuracy is 0.9, in production 0.95, on the same 2 evaluators (30 examples): "
        "0.05 lower, and at most 0.01 lower is allowed"
    )
    plan = replace(PLAN, metric="loss", cohort=("e1",), quorum=1, measured_by="devices")
    assert judge(plan, state_of(plan, ("e1", 10, 0.5, 0.5))).reason == (
        "loss is 0.5, in production 0.5, on the same 1 device (10 examples): "
        "the same, and at most 0.01 higher is allowed"
    )


def test_too_few_pairs_say_who_is_missing_and_why() -> None:
    state = state_of(PLAN, ("e1", 10, 0.9, 0.9))
    state.apply(SideDeclined("e2", "candidate", "out of memory"))
    judged = judge(PLAN, state)
    assert judged.verdict == "inconclusive"
    assert judged.reason == (
        "1 of at least 2 evaluators measured accuracy of both versions; e2 declined the "
        "candidate: out of memory; nothing or half came of e3"
    )


def test_a_metric_that_nobody_reports_is_named_with_those_that_are() -> None:
    state = state_of(replace(PLAN, metric="f1"), ("e1", 1, 1, 1), ("e2", 1, 1, 1))
    assert "what they measure: f1" in judge(PLAN, state).reason


def test_a_candidate_whose_metric_is_no_number_is_rolled_back() -> None:
    judged = judge(PLAN, state_of(PLAN, ("e1", 10, None, 0.9)))
    assert judged.verdict == "rolled_back"
    assert judged.reason == (
        "the candidate's accuracy is no number on e1, where production's is one"
    )


@pytest.mark.parametrize(
    "metric", ["loss", "val_loss", "train-loss", "mse", "RMSE", "error", "word_error", "perplexity"]
)
def test_lower_is_better(metric: str) -> None:
    assert lower_is_better(metric)


@pytest.mark.parametrize("metric", ["accuracy", "f1", "auc", "lossless", "terror", "precision"])
def test_higher_is_better(metric: str) -> None:
    assert not lower_is_better(metric)


@pytest.mark.parametrize(
    ("devices", "share", "count"),
    [(10, 0.2, 2), (10, 0.3, 3), (10, 0.25, 3), (10, 0.01, 1), (10, 1.0, 10), (1, 0.2, 1)],
)
def test_a_share_of_the_devices(devices: int, share: float, count: int) -> None:
    there = [f"e{number}" for number in range(devices)]
    chosen = choose(there, share, 7)
    assert len(chosen) == count
    assert set(chosen) <= set(there)
    assert chosen == choose(reversed(there), share, 7), "by the seed, not by who came first"
    assert quorum_of(chosen) == (count + 1) // 2


def test_different_seeds_choose_different_devices() -> None:
    there = [f"e{number}" for number in range(10)]
    assert len({choose(there, 0.2, seed) for seed in range(50)}) > 10


def test_both_orders_of_a_device_share_what_is_random() -> None:
    orders = [order_of(PLAN, OrderSide("e1", side)) for side in ATTEMPT_OF]
    assert [order.attempt for order in orders] == [1, 2]
    assert {(order.settings.seed, order.round) for order in orders} == {(0, 1)}
    assert [order.model.key for order in orders] == ["k/9", "k/5"]


def test_a_fact_in_the_wrong_place_changes_nothing() -> None:
    state = CanaryState(PLAN.cohort)
    with pytest.raises(InvalidTransition):
        state.apply(SideMeasured("e1", "candidate", 1, {}))
    state.apply(OrdersOpened())
    with pytest.raises(InvalidTransition):
        state.apply(SideMeasured("e9", "candidate", 1, {}))
    assert (state.phase, state.measured) == ("measuring", {})


FACTS: list[Fact] = [
    OrdersOpened(),
    SideMeasured("e1", "candidate", 3, {"accuracy": 0.5}),
    SideDeclined("e2", "production", "no"),
    Judged("inconclusive", "why", 0, None, 0.5),
    Settled("gone"),
]


def journal_of(path: Path) -> Journal:
    return Journal(f"sqlite:///{path}", {"canary": CanaryKind.vocabulary})


def test_canaries_outlive_the_process(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    journal = journal_of(path)
    journal.add_run(record_of(PLAN))
    journal.append(PLAN.canary_id, FACTS[:2])
    journal.close()
    journal = journal_of(path)
    journal.append(PLAN.canary_id, FACTS[2:])
    journal.add_run(record_of(replace(PLAN, canary_id="canary-2")))
    again = [journal.record(run_id) for run_id in journal.unfiled()]
    assert again[0].plan == PLAN
    assert again[0].definition.flow == "canary"
    told = [[row.fact for row in journal.facts(each.run_id, "canary")] for each in again]
    assert told == [FACTS, []]
    journal.close()


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE rengo_runs SET plan = '{}'",
        "UPDATE rengo_facts SET body = '{}' WHERE kind = 'Judged'",
        "UPDATE rengo_facts SET kind = 'RoundStarted' WHERE kind = 'Judged'",
    ],
)
def test_a_damaged_canary_is_named(tmp_path: Path, damage: str) -> None:
    journal = journal_of(tmp_path / "journal.sqlite")
    journal.add_run(record_of(PLAN))
    journal.append(PLAN.canary_id, FACTS)
    with journal.database.begin() as connection:
        connection.execute(sa.text(damage))
    with pytest.raises(DamagedRun, match="canary-1"):
        journal.facts(journal.record(PLAN.canary_id).run_id, "canary")
    journal.close()


def test_what_is_shown() -> None:
    machine = CanaryMachine(replace(PLAN, cohort=("e1",), quorum=1))
    machine.handle(DeviceJoined("e1", "evaluator"))
    machine.handle(CandidateMarked())
    row = shown(machine.plan, machine.state, 12.0)
    assert (row["state"], row["time_left_s"], row["verdict"]) == ("measuring", 12.0, "")
    for attempt, value in ((1, 0.5), (2, 0.75)):
        machine.handle(EvaluationReceived("e1", ROUND, attempt, 1, {"accuracy": value}))
    row = shown(machine.plan, machine.state, 12.0)
    assert (row["state"], row["pairs"], row["verdict"]) == ("settling", 1, "promoted")
    assert (row["candidate_mean"], row["production_mean"]) == (0.75, 0.5)
    assert machine.handle(DeadlinePassed()).facts == []


# --- the command line -------------------------------------------------------------------------


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--reason", default="")
    command.add_options(parser)
    return parser.parse_args(words)


def test_options_of_a_canary() -> None:
    assert command.trial_of(options()) is None
    assert command.trial_of(options("--canary", "20%")) == CanaryTrial()
    given = options("--canary", "0.5", "--metric", "loss", "--max-drop", "0.1", "--deadline", "5m")
    assert command.trial_of(given) == CanaryTrial(0.5, "loss", 0.1, 300.0)


@pytest.mark.parametrize("words", [["--metric", "loss"], ["--canary", "1", "--reason", "x"]])
def test_options_that_do_not_go_together(words: list[str]) -> None:
    with pytest.raises(ConfigError):
        command.trial_of(options(*words))


@pytest.mark.parametrize(
    "words",
    [
        ["--canary", "0"],
        ["--canary", "120%"],
        ["--canary", "nan"],
        ["--canary", "half"],
        ["--canary", "1", "--deadline", "soon"],
    ],
)
def test_options_that_are_wrong(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options(*words)
    assert "say " in capsys.readouterr().err
