"""The demo itself, torch and all: everything that may die dies once, and the model is the same."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from fl_server.rounds.facts import RoundCommitted, RoundStarted
from rengo.demo import DemoSettings, definition, fleet
from tests.chaos.arena import Arena, Opened, honest_rounds, wait_for

# one device of each kind: a training process with torch takes seconds to start
DEVICES = 3
TRAINERS = {"edge-1", "gpu-1", "pi-1"}
RUN = definition(DemoSettings(rounds=5, seed=1, clients=DEVICES))


@pytest.fixture(scope="module")
def demo(folder: Path) -> Iterator[Arena]:
    with Opened(folder, "digits") as arena:
        arena.start_fleet(fleet(DEVICES))
        yield arena


def test_the_demo_survives_the_death_of_each_of_its_parts(demo: Arena) -> None:
    undisturbed = demo.run(RUN)
    engines = {row["id"]: row["engine"] for row in undisturbed["devices"]}
    assert engines == {**dict.fromkeys(TRAINERS, "torch"), "pi-1": "numpy", "evaluator-1": "numpy"}

    run_id = demo.submit(RUN)
    demo.wait_fact(run_id, RoundStarted, 1)
    child = wait_for(lambda: demo.training_child("gpu-1"), "gpu-1 trains", demo.story)
    child.kill()
    for round_number, name in enumerate(("server", "broker", "store"), start=1):
        demo.wait_fact(run_id, RoundCommitted, round_number)
        demo.signal(name, signal.SIGKILL)
    report = demo.finish(run_id)

    honest_rounds(demo, run_id, TRAINERS)
    assert {name: demo.site.restarts(name) for name in ("server", "broker", "store")} == {
        "server": 1,
        "broker": 1,
        "store": 1,
    }
    assert report["model_sha256"] == undisturbed["model_sha256"]
    assert report["accuracy"] == undisturbed["accuracy"]
