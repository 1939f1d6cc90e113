"""Updates that go in parts, of an agent or to a server that is killed meanwhile."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fl_server.rounds.facts import RoundStarted, UpdateAccepted
from rengo.site.device_process import DeviceSpec
from tests.chaos.arena import Arena, Opened, wait_for

PART = 5 << 20
PARTS = 10  # of the update's 48 MiB
TASK = f"{Path(__file__).with_name('large.py')}:LargeUpdate"


@pytest.fixture(scope="module")
def arena(folder: Path) -> Iterator[Arena]:
    """One device, and a server that takes everything above 6 MiB in parts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RENGO_SERVER_PARTS__LARGE_BYTES", str(6 << 20))
        patch.setenv("RENGO_SERVER_PARTS__PART_BYTES", str(PART))
        patch.setenv("RENGO_SERVER_PARTS__WRITTEN_BYTES", str(PART))
        with Opened(folder, TASK) as opened:
            opened.start_own([DeviceSpec("edge-1", engine="numpy")])
            yield opened


def run_of(**more: Any) -> dict[str, Any]:
    return {
        "rounds": 1,
        "cohort": {"size": 1, "quorum": 1, "deadline_s": 120.0, "gather_s": 60.0},
        "evaluation": {"on": "none"},
        **more,
    }


def arrived(arena: Arena) -> int:
    """Return how many parts of the device's update have arrived, as it has written down."""
    updates = arena.site.folder.root / "devices" / "edge-1" / "updates"
    lines = [path.read_text().splitlines() for path in updates.glob("*.upd.parts")]
    return max((len(each) - 1 for each in lines), default=0)


def stop_within_upload(arena: Arena, name: str) -> int:
    """Stop a process once two parts have arrived; return how many had when all was still."""
    wait_for(lambda: arrived(arena) >= 2, "two parts have arrived", arena.story)
    arena.signal(name, signal.SIGSTOP)
    kept = arrived(arena)
    assert kept < PARTS, "it was quicker than this test"
    return kept


def bytes_up(arena: Arena, run_id: str) -> float:
    """Return what the device says it sent, in the life in which it reported."""
    accepted = arena.of(run_id, UpdateAccepted, 1)
    assert len(accepted) == 1
    return accepted[0].update.usage["bytes_up"]


def size_of(arena: Arena, run_id: str) -> int:
    return arena.of(run_id, UpdateAccepted, 1)[0].update.size_bytes


def test_an_update_goes_in_parts_and_none_is_left(arena: Arena) -> None:
    run_id = arena.submit(run_of())
    arena.finish(run_id)
    assert bytes_up(arena, run_id) == size_of(arena, run_id)
    assert list(arena.store.uploads("")) == []


def test_a_killed_agent_goes_on_with_the_parts_that_are_missing(arena: Arena) -> None:
    run_id = arena.submit(run_of())
    kept = stop_within_upload(arena, "edge-1")
    arena.own["edge-1"].kill()
    arena.own["edge-1"].start()
    arena.finish(run_id)
    assert bytes_up(arena, run_id) == size_of(arena, run_id) - kept * PART
    assert len(arena.of(run_id, RoundStarted)) == 1
    assert list(arena.store.uploads("")) == []


def test_a_killed_server_leaves_no_upload_behind(arena: Arena) -> None:
    run_id = arena.submit(run_of())
    stop_within_upload(arena, "edge-1")
    arena.kill("server")
    arena.signal("edge-1", signal.SIGCONT)
    arena.finish(run_id)
    assert list(arena.store.uploads("")) == []
