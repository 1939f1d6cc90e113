"""Histories of five rounds with eight devices and every kind of fault: 500, and 2,000 with soak."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fl_server.rounds import machine as real_rounds
from fl_server.rounds.facts import RoundClosed, RoundStarted
from tests.mutants import EVERY_MUTANT, Mutant
from tests.support import soaking
from tests.world.history import ROUNDS, Outcomes, World, live
from tests.world.report import explain, totals

HISTORIES = 2000
CHUNK = 100
OF_EVERY_RUN = 500
MUTANT_SEEDS = 400


@pytest.mark.parametrize(
    "first", soaking(range(0, HISTORIES, CHUNK), lambda first: first >= OF_EVERY_RUN)
)
def test_histories(first: int) -> None:
    for seed in range(first, first + CHUNK):
        outcome = live(seed)
        if outcome.failure:
            pytest.fail(explain(outcome), pytrace=False)


@pytest.mark.parametrize("seed", range(20))
def test_without_faults_each_round_takes_one_attempt_and_every_update(seed: int) -> None:
    outcome = live(seed, faults=False)
    assert not outcome.failure, explain(outcome)
    closed = [fact for fact in outcome.journal if isinstance(fact, RoundClosed)]
    assert [(fact.round, fact.attempt) for fact in closed] == [
        (number, 1) for number in range(1, ROUNDS + 1)
    ]
    started = [fact for fact in outcome.journal if isinstance(fact, RoundStarted)]
    for start, close in zip(started, closed, strict=True):
        assert len(close.included) == start.target
        assert set(close.included) <= set(start.cohort)


def test_a_full_cohort_makes_the_undisturbed_model_through_every_fault() -> None:
    found = 0
    for seed in range(HISTORIES, HISTORIES + 150):
        world = World(seed)
        if world.is_full:
            world.run()
            found += world.server.values == world.undisturbed()
    assert found >= 10


def test_a_seed_is_a_history() -> None:
    assert live(7, history=True).lines == live(7, history=True).lines
    assert live(7, history=True).lines != live(8, history=True).lines


def test_a_history_does_not_hang_on_hash_seeds() -> None:
    def digest(hash_seed: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "tests.world", "--seeds", "12", "--digest"],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    assert digest("1") == digest("2")


@pytest.fixture
def mad_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every clock and every shared die show something else each time."""
    mad = random.Random(3)

    def jumps() -> float:
        return mad.uniform(-1e9, 1e9)

    def jumps_ns() -> int:
        return int(mad.uniform(-1e18, 1e18))

    for name in ("time", "monotonic", "perf_counter"):
        monkeypatch.setattr(time, name, jumps)
        monkeypatch.setattr(time, f"{name}_ns", jumps_ns)
    monkeypatch.setattr(random, "random", jumps)
    monkeypatch.setattr(os, "urandom", bytes)


def test_clock_jumps_have_no_effect(request: pytest.FixtureRequest) -> None:
    steady = [live(seed, history=True).lines for seed in range(20)]
    request.getfixturevalue("mad_clocks")
    jumping = [live(seed, history=True).lines for seed in range(20)]
    request.getfixturevalue("monkeypatch").undo()
    assert steady == jumping


def test_every_kind_of_fault_and_fact_occurs() -> None:
    """A world whose faults never strike proves nothing."""
    counts = totals(range(120))
    rare = [name for name, count in counts.items() if count < 1]
    assert not rare, rare


# which the search takes hundreds of histories to find
LATE = {"a-check-outlives-its-attempt", "starts-a-second-job-over-the-first"}


@pytest.mark.parametrize(
    "mutant",
    soaking([m for m in EVERY_MUTANT if m.in_world], lambda each: str(each) in LATE),
    ids=str,
)
def test_the_world_finds(mutant: Mutant) -> None:
    assert first_failure(mutant) is not None


def first_failure(mutant: Mutant) -> Outcomes | None:
    machine, session = mutant.machine(), mutant.session()
    for seed in range(MUTANT_SEEDS):
        outcome = live(seed, machine, session)
        if outcome.failure:
            return outcome
    return None


ENDS_RESTS_EARLY = Mutant(
    "ends the rests of those who declined in an open round",
    real_rounds,
    {'case "gather" | "rest" if ledger.phase == "gathering":': 'case "gather" | "rest":'},
)


@pytest.mark.parametrize("seed", [5423, 6359])
def test_a_rest_that_ends_while_a_round_collects_is_of_those_who_declined_before_it(
    seed: int,
) -> None:
    outcome = live(seed)
    assert not outcome.failure, explain(outcome)
    assert live(seed, ENDS_RESTS_EARLY.machine()).failure


def test_a_failing_seed_prints_its_history_and_how_to_replay_it() -> None:
    outcome = first_failure(EVERY_MUTANT[-1])
    assert outcome is not None
    text = explain(outcome)
    assert f"--start {outcome.seed} --seeds 1 --history" in text
    assert "journals RoundStarted(round=1" in "\n".join(outcome.lines)
    assert outcome.failure in text
