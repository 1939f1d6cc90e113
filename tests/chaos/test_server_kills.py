"""The server is killed at seeded moments, of every phase; the model comes out bit-equal.

`make test` has one kill of each phase, `make soak` twenty more.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from rengo.demo import DemoSettings, definition
from tests.chaos.arena import TRAINERS, Arena, honest_rounds
from tests.chaos.moments import POINTS, Moment, draw

ROUNDS, LONG_ROUNDS, SEED = 6, 11, 20
SHORT = draw(SEED, 1, len(POINTS), ROUNDS)[0]
LONG = draw(SEED, 2, 10, LONG_ROUNDS)


class Undisturbed:
    """The sha256 of the model that a run of so many rounds gives when nobody interferes."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._known: dict[int, str] = {}

    def of(self, rounds: int) -> str:
        if rounds not in self._known:
            report = self._arena.run(run_of(rounds))
            honest_rounds(self._arena, report["run_id"], TRAINERS)
            self._known[rounds] = str(report["model_sha256"])
        return self._known[rounds]


def run_of(rounds: int) -> dict[str, Any]:
    return definition(DemoSettings(rounds=rounds, seed=SEED))


@pytest.fixture(scope="module")
def undisturbed(mortal_fleet: Arena) -> Undisturbed:
    return Undisturbed(mortal_fleet)


def test_the_moments_are_of_every_phase_as_often_as_of_any_other() -> None:
    assert sorted(moment.phase for moment in SHORT) == sorted(POINTS)
    drawn = Counter(moment.phase for plan in LONG for moment in plan)
    assert drawn == dict.fromkeys(POINTS, 4)


@pytest.mark.parametrize(
    ("plan", "rounds"),
    [
        pytest.param(SHORT, ROUNDS, id="of each phase"),
        *(
            pytest.param(plan, LONG_ROUNDS, id=name, marks=pytest.mark.soak)
            for plan, name in zip(LONG, ("first", "second"), strict=True)
        ),
    ],
)
def test_the_run_goes_on_after_every_kill(
    mortal_fleet: Arena, undisturbed: Undisturbed, plan: list[Moment], rounds: int
) -> None:
    arena, fleet, expected = mortal_fleet, [*TRAINERS, "evaluator-1"], undisturbed.of(rounds)
    arena.kill("server")  # once more, while nothing runs
    before = arena.site.restarts("server")
    arena.plan(plan)
    processes = arena.training_processes(fleet)
    report = arena.run(run_of(rounds))
    assert arena.moments_left() == []
    assert arena.site.restarts("server") - before == len(plan)
    honest_rounds(arena, report["run_id"], TRAINERS)
    assert report["model_sha256"] == expected
    assert arena.training_processes(fleet) - processes <= len(fleet), "each stays warm in its run"
