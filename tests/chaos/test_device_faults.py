"""Devices that die, stop or come late: the round ends without them, or waits and counts them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fl_server.rounds.facts import RoundClosed, RoundCommitted, RoundStarted
from rengo.demo import DemoSettings, definition
from tests.chaos.arena import GATED_TASK, TRAINERS, Arena, Gates, Opened, numpy_fleet, wait_for


def run_of(rounds: int, **cohort: Any) -> dict[str, Any]:
    """Return the demo's run, in which the cohort's settings may differ."""
    values = definition(DemoSettings(rounds=rounds, seed=3))
    return {**values, "cohort": {**values["cohort"], "gather_s": 1.0, **cohort}}


@pytest.fixture(scope="module")
def arena(folder: Path) -> Iterator[Arena]:
    """The demo's fleet on numpy; a device that dies stays dead until the test starts it again."""
    with Opened(folder, GATED_TASK) as opened:
        opened.start_own(numpy_fleet())
        yield opened


@pytest.fixture(scope="module")
def undisturbed(arena: Arena) -> str:
    """The sha256 of the model of one round of the whole cohort, when nobody interferes."""
    return str(arena.run(run_of(rounds=1))["model_sha256"])


@pytest.fixture
def gates(folder: Path, arena: Arena) -> Iterator[Gates]:
    """No gate is held before and after a test, and every device is there."""
    gates = Gates(folder / "gates")
    yield gates
    gates.open_all()
    for child in arena.own.values():
        child.signal(signal.SIGCONT)
        if not child.running:
            child.start()
    arena.wait_online(TRAINERS)


def test_a_device_killed_while_it_trains_is_not_waited_for_and_returns_later(
    arena: Arena, gates: Gates
) -> None:
    gates.hold("edge-2")
    run_id = arena.submit(run_of(rounds=3))
    gates.wait_reached("edge-2")
    arena.wait_accepted(run_id, TRAINERS - {"edge-2"})
    gates.hold("edge-1")  # so that round 2 waits until the dead are back
    arena.own["edge-2"].kill()
    arena.wait_fact(run_id, RoundCommitted, 1)
    gates.release("edge-2")
    arena.own["edge-2"].start()
    arena.wait_online(TRAINERS)
    gates.release("edge-1")
    report = arena.finish(run_id)
    included = arena.included(run_id)
    assert set(included[1]) == TRAINERS - {"edge-2"}
    assert "edge-2" in included[3]
    assert report["rounds_completed"] == 3


def test_an_update_that_was_trained_before_the_kill_counts_and_is_not_trained_again(
    arena: Arena, gates: Gates, undisturbed: str
) -> None:
    before = arena.training_processes(["edge-2"])
    gates.hold("edge-1", "edge-2")  # edge-1 keeps the round open
    run_id = arena.submit(run_of(rounds=1))
    gates.wait_reached("edge-2")
    arena.signal("server", signal.SIGSTOP)  # so that there is no receipt
    gates.release("edge-2")
    wait_for(lambda: arena.kept_stages("edge-2") == {"reporting"}, "edge-2 reports", arena.story)
    arena.own["edge-2"].kill()
    arena.signal("server", signal.SIGCONT)
    arena.own["edge-2"].start()
    arena.wait_accepted(run_id, {"edge-2"})
    wait_for(lambda: not arena.kept_stages("edge-2"), "edge-2 has its receipt", arena.story)
    gates.release("edge-1")
    report = arena.finish(run_id)
    assert set(arena.included(run_id)[1]) == TRAINERS
    assert report["model_sha256"] == undisturbed
    assert arena.training_processes(["edge-2"]) - before == 1


def test_a_killed_training_process_is_an_event_and_the_job_is_done_again(
    arena: Arena, gates: Gates, undisturbed: str
) -> None:
    gates.hold("edge-3")
    run_id = arena.submit(run_of(rounds=1))
    gates.wait_reached("edge-3")
    agent, child = arena.pid("edge-3"), arena.training_child("edge-3")
    assert child is not None
    gates.forget_reached("edge-3")
    child.kill()
    gates.wait_reached("edge-3")
    gates.release("edge-3")
    report = arena.finish(run_id)
    assert arena.own["edge-3"].running
    assert arena.pid("edge-3") == agent
    assert set(arena.included(run_id)[1]) == TRAINERS
    assert report["model_sha256"] == undisturbed


def test_a_device_that_never_answers_is_left_behind_at_the_deadline(
    arena: Arena, gates: Gates
) -> None:
    deadline_s = 10.0
    arena.signal("edge-4", signal.SIGSTOP)
    run_id = arena.submit(run_of(rounds=3, deadline_s=deadline_s))
    arena.wait_fact(run_id, RoundCommitted, 1)
    arena.signal("edge-4", signal.SIGCONT)
    report = arena.finish(run_id)
    first = next(row for row in report["history"] if row["outcome"] == "committed")
    assert "edge-4" not in first["included"]
    assert first["invited"] == len(TRAINERS)
    assert first["seconds"] >= deadline_s
    included = arena.included(run_id)
    assert any("edge-4" in included[number] for number in (2, 3))


def test_a_late_device_takes_part_from_the_next_round_on(arena: Arena, gates: Gates) -> None:
    arena.own["edge-4"].stop()
    wait_for(lambda: "edge-4" not in arena.online(), "edge-4 is gone", arena.story)
    gates.hold("edge-1")
    run_id = arena.submit(run_of(rounds=2))
    started = arena.wait_fact(run_id, RoundStarted, 1)
    assert set(started.cohort) == TRAINERS - {"edge-4"}
    arena.own["edge-4"].start()
    arena.wait_online(TRAINERS)
    gates.release("edge-1")
    arena.finish(run_id)
    included = arena.included(run_id)
    assert [set(included[number]) for number in (1, 2)] == [TRAINERS - {"edge-4"}, TRAINERS]


def test_a_run_waits_for_the_device_that_makes_its_quorum(
    arena: Arena, gates: Gates, undisturbed: str
) -> None:
    arena.own["edge-4"].stop()
    wait_for(lambda: "edge-4" not in arena.online(), "edge-4 is gone", arena.story)
    run_id = arena.submit(run_of(rounds=1, quorum=6))
    shown = arena.client.call("runs_show", {"run_id": run_id})
    assert (shown["phase"], shown["history"]) == ("gathering", [])
    arena.own["edge-4"].start()
    report = arena.finish(run_id)
    assert arena.of(run_id, RoundClosed)[0].included == tuple(sorted(TRAINERS))
    assert report["model_sha256"] == undisturbed
