"""Server and devices are killed in a run of an algorithm with state: the final bits are the same.

`make test` has one algorithm that keeps state on both sides, `make soak` one of each other kind.
"""

from __future__ import annotations

from typing import Any

import pytest

from fl_server.rounds.facts import RoundCommitted
from rengo.demo import DemoSettings, definition
from tests.chaos.arena import TRAINERS, Arena, honest_rounds
from tests.chaos.moments import Moment

ROUNDS = 5
SETTINGS: dict[str, dict[str, Any]] = {"fedrolex": {"widths": {"pi": 0.25, "edge-2": 0.5}}}
# what goes around an algorithm, with what it keeps until its update counts or its round ends
AROUND: dict[str, dict[str, Any]] = {
    "sparsify": {"transforms": [{"name": "sparsify", "share": 0.05}, {"name": "clip"}]},
    "trimmed_mean": {"rule": {"name": "trimmed_mean", "share": 0.1}},
}
# after a version and what the server keeps of it went to the store, and within the sum of the next
PLAN = [Moment("aggregating", "version-stored", 1), Moment("verifying", "verify-ended", 3, 2)]


def run_of(name: str) -> dict[str, Any]:
    # no patience for a full cohort would leave the killed device out
    return {
        **definition(DemoSettings(rounds=ROUNDS, seed=11)),
        "algorithm": {"name": "fedavg" if name in AROUND else name, **SETTINGS.get(name, {})},
        **AROUND.get(name, {}),
        "evaluation": {"on": "devices"},
        "cohort": {"size": len(TRAINERS), "quorum": len(TRAINERS), "gather_s": 60.0},
    }


@pytest.mark.parametrize(
    "name",
    [
        "scaffold",
        *(
            pytest.param(each, marks=pytest.mark.soak)
            for each in (
                "ditto",
                "ifca",
                "fedyogi",
                "feddyn",
                "mimelite",
                "fedrep",
                "afl",
                "fedrolex",
                "fedmgda",
                *AROUND,
            )
        ),
    ],
)
def test_the_bits_are_those_of_the_undisturbed_run(mortal_fleet: Arena, name: str) -> None:
    arena = mortal_fleet
    expected = arena.run(run_of(name))
    arena.plan(PLAN)
    run_id = arena.submit(run_of(name))
    for number, device in ((1, "edge-1"), (2, "pi-1"), (3, "edge-2")):
        arena.wait_fact(run_id, RoundCommitted, number)
        arena.kill(device)
    report = arena.finish(run_id)
    assert arena.moments_left() == []
    honest_rounds(arena, run_id, TRAINERS)
    assert report["model_sha256"] == expected["model_sha256"]
