"""Orders that are fitted to speed: from results to facts to orders, and back from the journal."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any

import pytest
from pydantic import TypeAdapter

from fl_server.flows.events import DeviceJoined
from fl_server.rounds.events import AggregationFinished, ResultReceived, UpdateVerified
from fl_server.rounds.facts import Fact, RoundStarted
from fl_server.rounds.machine import RoundMachine
from fl_server.rounds.model import Model, Update
from fl_server.rounds.plan import Plan
from fl_server.rounds.workload import (
    PROBE_STEPS,
    FitRule,
    OrderWork,
    Speed,
    fit,
    known_speeds,
    measured,
)
from fl_server.runs.definition import CohortSection, RunDefinition
from runtime.bounds import MAX_SECONDS, MAX_SIZE, SHORTEST_STEP_S

MODEL = Model(0, "m/0", "0" * 64, 100)
PI, GPU = "pi", "gpu"
EPOCH = 1_000


def plan(**changes: Any) -> Plan:
    return replace(
        Plan("r", rounds=9, cohort_size=2, quorum=2, evaluate_on="none", deadline_s=600),
        fit=FitRule(4.0, 600.0),
        **changes,
    )


def started(step: Any) -> RoundStarted:
    return next(fact for fact in step.facts if isinstance(fact, RoundStarted))


def joined(machine: RoundMachine) -> RoundStarted:
    machine.handle(DeviceJoined(PI))
    return started(machine.handle(DeviceJoined(GPU)))


def result(machine: RoundMachine, name: str, step_s: float, steps: int) -> None:
    """Let a device report steps at its speed."""
    ledger = machine.ledger
    usage = {
        "steps": steps,
        "steps_s": steps * step_s,
        "full_steps": EPOCH,
        "train_s": steps * step_s + 0.3,
        "transfer_s": 0.2,
    }
    update = Update(f"{name}-{ledger.round}", 10, "a" * 64, 5, {}, usage)
    machine.handle(ResultReceived(name, ledger.round, ledger.attempt, update))
    machine.handle(UpdateVerified(name, ledger.round, ledger.attempt, update))


def next_round(machine: RoundMachine, steps: dict[str, int]) -> RoundStarted:
    result(machine, PI, 0.1, steps[PI])
    result(machine, GPU, 0.002, steps[GPU])
    number = machine.ledger.round
    model = replace(MODEL, version=number, key=f"m/{number}")
    return started(machine.handle(AggregationFinished(number, 1, model)))


def test_after_a_probe_a_slow_and_a_fast_device_are_done_together() -> None:
    machine = RoundMachine(plan(), MODEL)
    first = joined(machine)
    assert first.work == {PI: OrderWork(8), GPU: OrderWork(8)}
    second = next_round(machine, {PI: 8, GPU: 8})
    # 4 s less half a second of everything else
    assert second.work == {PI: OrderWork(35), GPU: OrderWork(0)}
    assert machine.ledger.speeds[PI].seconds(35) == pytest.approx(4.0)
    third = next_round(machine, {PI: 35, GPU: EPOCH})
    assert third.work[PI] == OrderWork(35)


def test_the_same_orders_follow_after_a_crash_whatever_is_measured_since() -> None:
    machine = RoundMachine(plan(), MODEL)
    facts: list[Fact] = []
    apply = machine.ledger.apply

    def kept(fact: Fact) -> None:
        apply(fact)
        body = TypeAdapter(type(fact)).dump_json(fact)
        facts.append(TypeAdapter(type(fact)).validate_json(body))

    machine.ledger.apply = kept  # type: ignore[method-assign]
    joined(machine)
    next_round(machine, {PI: 8, GPU: 8})
    result(machine, GPU, 9.0, 500)  # as slow as can be, in the midst of the round
    again = RoundMachine(plan(), MODEL, facts)
    assert again.ledger.work == machine.ledger.work == {PI: OrderWork(35), GPU: OrderWork(0)}
    assert again.ledger.speeds == machine.ledger.speeds


def test_a_run_that_fits_nothing_keeps_no_work() -> None:
    machine = RoundMachine(replace(plan(), fit=None), MODEL)
    assert joined(machine).work == {}


def test_a_new_run_begins_with_the_speeds_of_earlier_ones() -> None:
    first = {PI: Speed(1.0, 0, 9), GPU: Speed(0.5, 0, 9)}
    known = known_speeds([first, {PI: Speed(0.1, 0.5, EPOCH)}])
    assert known == {PI: Speed(0.1, 0.5, EPOCH), GPU: Speed(0.5, 0, 9)}
    machine = RoundMachine(replace(plan(), fit=FitRule(4.0, 600, 0, known)), MODEL)
    assert joined(machine).work == {PI: OrderWork(35), GPU: OrderWork(8)}


def test_smaller_batches_come_from_earlier_runs_and_do_not_shrink_twice() -> None:
    known = {PI: Speed(0.1, 0.5, EPOCH, micro_batch=8)}
    machine = RoundMachine(replace(plan(), fit=FitRule(4.0, 600, 0, known)), MODEL)
    assert joined(machine).work == {PI: OrderWork(35, 8), GPU: OrderWork(8)}
    # within this run the device cut them further, and does so again by itself
    machine.ledger.speeds[PI] = Speed(0.1, 0.5, EPOCH, micro_batch=2)
    assert next_round(machine, {PI: 35, GPU: 8}).work[PI].micro_batch == 8


def test_speeds_are_smoothed() -> None:
    before, newer = Speed(1.0, 4.0, 10), Speed(3.0, 2.0, 12, 4)
    assert before.followed_by(newer) == Speed(2.0, 3.0, 12, 4)


@pytest.mark.parametrize(
    "usage",
    [
        {},
        {"steps": 0, "steps_s": 1.0, "full_steps": 4},
        {"steps": 4, "steps_s": 0.0, "full_steps": 4},
        {"steps": 4, "steps_s": math.inf, "full_steps": 4},
        {"steps": 4, "steps_s": 1.0, "full_steps": 0},
        {"steps": 4, "steps_s": 1.0, "full_steps": 4, "transfer_s": math.inf},
        {"steps": 2, "steps_s": 5e-324, "full_steps": 4},
        {"steps": MAX_SIZE, "steps_s": 1.0, "full_steps": 4},
        {"steps": 4, "steps_s": 1.0, "full_steps": MAX_SIZE + 1},
        {"steps": 1, "steps_s": MAX_SECONDS * 2, "full_steps": 4},
        {"steps": 4, "steps_s": math.nan, "full_steps": 4},
    ],
)
def test_a_result_that_tells_no_speed_is_no_measurement(usage: dict[str, float]) -> None:
    assert measured(usage) is None


@pytest.mark.parametrize(
    "poison",
    [
        Speed(0.0, 0.0, 4),
        Speed(5e-324, 0.0, 4),
        Speed(math.nan, 0.0, 4),
        Speed(math.inf, 0.0, 4),
        Speed(0.1, math.inf, 4),
        Speed(0.1, -1e300, 4),
        Speed(0.1, 0.0, 0),
        Speed(0.1, 0.0, 1 << 70),
        Speed(0.1, 0.0, 4, -1),
    ],
)
def test_a_speed_that_cannot_be_true_is_as_none(poison: Speed) -> None:
    """A journal of an earlier version holds such: seen as a division by zero at every start."""
    sound = Speed(0.1, 0.0, 40)
    for known in (FitRule(4.0, 600.0, known={PI: poison}), FitRule(None, 600.0)):
        work = fit([PI, GPU], {PI: poison, GPU: sound}, known)
        assert work[PI] == OrderWork(PROBE_STEPS)
        assert work[GPU] == OrderWork(0)
    assert known_speeds([{PI: sound}, {PI: poison}]) == {PI: sound}


def test_the_fastest_and_the_slowest_steps_give_work() -> None:
    for step_s in (SHORTEST_STEP_S, MAX_SECONDS):
        speed = Speed(step_s, 2 * MAX_SECONDS, MAX_SIZE, MAX_SIZE)
        assert speed.is_plausible
        assert speed.followed_by(speed).is_plausible
        found = fit([PI], {PI: speed}, FitRule(None, 604_800.0, known={PI: speed}))
        assert 1 <= found[PI].max_steps <= MAX_SIZE


def test_the_definition_says_whether_to_fit() -> None:
    whole = RunDefinition(task="t", training={"max_steps": 50})
    assert whole.plan("r", evaluators_online=False).fit is None
    cohort = CohortSection(fit="time", fit_target_s=20)
    known = {PI: Speed(0.1, 0, 9)}
    made = whole.model_copy(update={"cohort": cohort}).plan(
        "r", evaluators_online=False, speeds=known
    )
    assert made.fit == FitRule(20, 120.0, 50, known)
    # as the journal keeps it
    kept = TypeAdapter(Plan).validate_json(TypeAdapter(Plan).dump_json(made))
    assert kept == made
    assert asdict(kept)["fit"]["known"] == {PI: asdict(known[PI])}


@pytest.mark.parametrize(
    "given", [{"fit_target_s": 9.0}, {"fit": "time", "fit_target_s": 121.0}, {"fit": "space"}]
)
def test_a_target_needs_fitting_and_comes_before_the_deadline(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="fit"):
        CohortSection(**given)
