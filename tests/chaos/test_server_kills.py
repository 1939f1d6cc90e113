"""The server is killed at twenty seeded moments; the model comes out bit-equal."""

from __future__ import annotations

from collections import Counter

import pytest

from rengo.demo import DemoSettings, definition
from tests.chaos.arena import TRAINERS, Arena, honest_rounds
from tests.chaos.moments import POINTS, Moment, draw

RUNS, KILLS, ROUNDS, SEED = 2, 10, 11, 20
RUN = definition(DemoSettings(rounds=ROUNDS, seed=SEED))
PLANS = draw(SEED, RUNS, KILLS, ROUNDS)


@pytest.fixture(scope="module")
def undisturbed(mortal_fleet: Arena) -> str:
    """The sha256 of the model that the same run gives when nobody interferes."""
    report = mortal_fleet.run(RUN)
    honest_rounds(mortal_fleet, report["run_id"], TRAINERS)
    return str(report["model_sha256"])


def test_the_moments_are_twenty_and_of_every_phase() -> None:
    drawn = Counter(moment.phase for plan in PLANS for moment in plan)
    assert drawn.total() == 20
    assert all(drawn[phase] == 4 for phase in POINTS)


@pytest.mark.parametrize("plan", PLANS, ids=["first", "second"])
def test_the_run_goes_on_after_every_kill(
    mortal_fleet: Arena, undisturbed: str, plan: list[Moment]
) -> None:
    arena, fleet = mortal_fleet, [*TRAINERS, "evaluator-1"]
    arena.kill("server")  # once more, while nothing runs
    before = arena.site.restarts("server")
    arena.plan(plan)
    processes = arena.training_processes(fleet)
    report = arena.run(RUN)
    assert arena.moments_left() == []
    assert arena.site.restarts("server") - before == KILLS
    honest_rounds(arena, report["run_id"], TRAINERS)
    assert report["model_sha256"] == undisturbed
    assert arena.training_processes(fleet) - processes <= len(fleet), "each stays warm in its run"
