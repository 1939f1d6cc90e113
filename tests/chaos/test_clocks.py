"""Devices whose clocks are years off, stand still or jump take part in a run like any other."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fl_server.rounds.facts import RoundCommitted
from runtime.processes.child import Child
from tests.chaos.arena import GATED_TASK, Arena, Gates, Opened, honest_rounds, wait_for
from tests.chaos.test_device_faults import run_of

YEAR_S = 365 * 86_400
CLOCKS = {
    "past": f"{-40 * YEAR_S}",
    "future": f"{40 * YEAR_S}",
    "still": "stands at 1262304000",
    "jumping": "0",
}
# the data of a day is counted too
DATA = {"RENGO_AGENT_BUDGET__DATA_PER_DAY": "200MB"}


@dataclass
class Clocks:
    arena: Arena
    gates: Gates
    jumping: Path

    def jump(self, by: str) -> None:
        self.jumping.write_text(by)


# libfaketime would do this for every library, but breaks time.sleep() of Python 3.11 and newer
SITE = """
import os, time
from pathlib import Path

real_s, local, universal = time.time, time.localtime, time.gmtime

def now_s():
    said = Path(os.environ["RENGO_TEST_CLOCK"]).read_text()
    still = said.removeprefix("stands at ")
    return float(still) if still != said else real_s() + float(said or 0)

time.time = now_s
time.time_ns = lambda: int(now_s() * 1e9)
time.localtime = lambda at=None: local(now_s() if at is None else at)
time.gmtime = lambda at=None: universal(now_s() if at is None else at)
"""


def start(arena: Arena, name: str, index: int, clock: Path) -> None:
    """Start a device whose clock says what a file says; what the kernel counts stays right."""
    folder = arena.site.folder
    arena.site.member(name, index, len(CLOCKS))
    argv = (
        *("rengo", "iot", "--profile", "pi4", "--task", arena.task),
        *("--identity", str(folder.identity_path(name))),
        *("--data-dir", str(folder.root / "devices" / name)),
        *("--index", str(index), "--count", str(len(CLOCKS))),
    )
    environment = {
        **os.environ,
        **DATA,
        # the agent and its training process load it before all else
        "PYTHONPATH": str(clock.parent),
        "RENGO_TEST_CLOCK": str(clock),
    }
    child = Child(
        name,
        [sys.executable, "-m", *argv],
        folder.root / "logs" / f"{name}.log",
        environment=environment,
    )
    arena.own[name] = child
    child.start()


@pytest.fixture
def clocks(folder: Path) -> Iterator[Clocks]:
    (folder / "sitecustomize.py").write_text(SITE)
    with Opened(folder, GATED_TASK) as arena:
        for index, (name, clock) in enumerate(CLOCKS.items()):
            path = folder / f"{name}.clock"
            path.write_text(clock)
            start(arena, name, index, path)
        arena.wait_ready(list(CLOCKS))
        yield Clocks(arena, Gates(folder / "gates"), folder / "jumping.clock")


def test_a_run_of_devices_with_wrong_clocks(clocks: Clocks) -> None:
    arena, gates = clocks.arena, clocks.gates
    gates.hold("jumping")
    run_id = arena.submit(run_of(rounds=3, size=len(CLOCKS), quorum=len(CLOCKS)))
    gates.wait_reached("jumping")
    clocks.jump(f"{12 * YEAR_S}")
    gates.forget_reached("jumping")
    gates.release("jumping")
    arena.wait_fact(run_id, RoundCommitted, 1)
    clocks.jump(f"{-12 * YEAR_S}")
    report = arena.finish(run_id)
    assert report["rounds_completed"] == 3
    honest_rounds(arena, run_id, set(CLOCKS))

    def left() -> dict[str, int]:
        rows = arena.client.call("devices_ls")["devices"]
        return {row["id"]: row["health"]["data_left_bytes"] for row in rows if "health" in row}

    wait_for(lambda: set(left()) >= set(CLOCKS), "every device tells its health", arena.story)
    # told at the first connection, and again when it has changed by much
    assert all(190_000_000 < each <= 200_000_000 for each in left().values())
