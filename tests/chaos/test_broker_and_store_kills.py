"""The broker or the store dies in mid-round, is started again, and the model is the same."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from fl_server.rounds.facts import RoundCommitted
from rengo.demo import DemoSettings, definition
from tests.chaos.arena import (
    GATED_TASK,
    TRAINERS,
    Arena,
    Gates,
    Opened,
    honest_rounds,
    numpy_fleet,
    wait_for,
)

RUN = definition(DemoSettings(rounds=3, seed=5))
OTHERS = TRAINERS - {"edge-1"}


@pytest.fixture(scope="module")
def arena(folder: Path) -> Iterator[Arena]:
    """The demo's fleet on numpy, whole and supervised."""
    with Opened(folder, GATED_TASK) as opened:
        opened.start_fleet(numpy_fleet())
        yield opened


@pytest.fixture(scope="module")
def undisturbed(arena: Arena) -> str:
    return str(arena.run(RUN)["model_sha256"])


@pytest.fixture
def gates(folder: Path) -> Iterator[Gates]:
    gates = Gates(folder / "gates")
    yield gates
    gates.open_all()


def round_with_one_missing(arena: Arena, gates: Gates) -> str:
    """Return a run whose first round has every update but that of edge-1, which has trained it."""
    gates.hold("edge-1")
    run_id = arena.submit(RUN)
    arena.wait_accepted(run_id, OTHERS)
    gates.wait_reached("edge-1")
    return run_id


def assert_undisturbed(arena: Arena, run_id: str, undisturbed: str) -> None:
    report = arena.finish(run_id)
    honest_rounds(arena, run_id, TRAINERS)
    assert report["model_sha256"] == undisturbed


@pytest.mark.parametrize("service", ["broker", "store"])
def test_a_service_killed_in_mid_round_and_again_later(
    arena: Arena, gates: Gates, undisturbed: str, service: str
) -> None:
    run_id = round_with_one_missing(arena, gates)
    arena.kill(service)
    gates.release("edge-1")
    arena.wait_fact(run_id, RoundCommitted, 1)
    arena.kill(service)
    assert_undisturbed(arena, run_id, undisturbed)


def test_the_store_killed_during_a_put(arena: Arena, gates: Gates, undisturbed: str) -> None:
    run_id = round_with_one_missing(arena, gates)
    arena.signal("store", signal.SIGSTOP)  # takes the connection and answers nothing
    gates.release("edge-1")
    wait_for(lambda: arena.kept_stages("edge-1") == {"uploading"}, "edge-1's PUT", arena.story)
    arena.kill("store")
    assert_undisturbed(arena, run_id, undisturbed)


def test_broker_store_and_server_killed_together(
    arena: Arena, gates: Gates, undisturbed: str
) -> None:
    run_id = round_with_one_missing(arena, gates)
    before = {name: arena.site.restarts(name) for name in ("broker", "store", "server")}
    for name in before:
        arena.signal(name, signal.SIGKILL)
    gates.release("edge-1")
    assert_undisturbed(arena, run_id, undisturbed)
    assert all(arena.site.restarts(name) > count for name, count in before.items())
