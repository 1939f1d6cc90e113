"""A Raspberry Pi's agent on a real site grows hot: its training rests, its operator sees why."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from fl_server.rounds.facts import OrderDeclined, UpdateAccepted
from rengo.demo import DemoSettings, definition
from rengo.site.device_process import DeviceSpec
from tests.chaos.arena import GATED_TASK, REPOSITORY, Arena, Gates, Opened, wait_for
from tests.chaos.fake_board import Board
from tests.integration.commands import rengo

PI, EDGE = "pi-1", "edge-1"
SPECS = [
    DeviceSpec(PI, profile="pi", engine="numpy", index=0, count=2),
    DeviceSpec(EDGE, engine="numpy", index=1, count=2),
]
# as the preset of a Pi 3 has it
PAUSE_C, RESUME_C = 75, 65
RESTS = f"training rests from {PAUSE_C} °C until {RESUME_C} °C"
CONFIG = '[health]\nlook_s = 0.4\nquiet_s = 0\n[labels]\nplace = "roof"\n'


@dataclass
class Roof:
    """The site, and the Pi on the roof."""

    arena: Arena
    board: Board
    gates: Gates

    def shown(self) -> str:
        """Return what the operator sees of the Pi."""
        told = rengo("devices", "show", PI, home=self.arena.site.folder.root)
        assert told.code == 0, told
        return told.out

    def wait_shown(self, *texts: str) -> None:
        wait_for(
            lambda: all(text in self.shown() for text in texts), f"{texts} are shown", self.story
        )

    def story(self) -> str:
        return f"{self.shown()}\n{self.arena.story()}"

    def training(self) -> psutil.Process:
        found = self.arena.training_child(PI)
        assert found is not None
        return found

    def accepted(self, run_id: str) -> set[str]:
        return {fact.device_id for fact in self.arena.of(run_id, UpdateAccepted)}


def run_of(**cohort: Any) -> dict[str, Any]:
    values = definition(DemoSettings(rounds=1, seed=5, clients=2))
    return {**values, "cohort": {**values["cohort"], **cohort}, "evaluation": {"on": "none"}}


@pytest.fixture(scope="module")
def roof(folder: Path) -> Iterator[Roof]:
    board = Board(folder / "board")
    config = folder / "pi.toml"
    with Opened(folder, GATED_TASK) as arena:
        for spec in SPECS:
            child = arena.prepare(spec)
            if spec.name == PI:
                config.write_text(f'identity = "{arena.site.folder.identity_path(PI)}"\n{CONFIG}')
                command = child._argv[child._argv.index("iot") :]
                child._argv = [
                    *(sys.executable, "-m", "tests.chaos.fake_board", str(board.root)),
                    *(*command, "--config", str(config)),
                ]
                child._cwd = REPOSITORY
            child.start()
        arena.wait_ready([PI, EDGE])
        yield Roof(arena, board, Gates(folder / "gates"))


@pytest.fixture(autouse=True)
def cool(roof: Roof) -> Iterator[None]:
    yield
    roof.board.heat(40)
    roof.board.throttle(0)
    roof.gates.open_all()
    roof.wait_shown("training       allowed", "temperature    40.0 °C", "throttled      no")


@pytest.fixture(scope="module")
def undisturbed(roof: Roof) -> str:
    """The sha256 of the model of one round of both, when nothing is hot."""
    return str(roof.arena.run(run_of(quorum=2))["model_sha256"])


def test_training_rests_while_it_is_hot_goes_on_when_it_is_cool_and_counts(
    roof: Roof, undisturbed: str
) -> None:
    roof.gates.hold(PI)
    run_id = roof.arena.submit(run_of(quorum=2))
    roof.gates.wait_reached(PI)
    training, begun = roof.training(), roof.arena.training_processes([PI])
    roof.board.heat(PAUSE_C + 1)
    wait_for(lambda: training.status() == psutil.STATUS_STOPPED, "training rests", roof.story)
    roof.wait_shown(f"paused: the processor is at 76 °C: {RESTS}", "temperature    76.0 °C")
    # what it waited for comes, but it rests; and half cool is not cool
    roof.gates.release(PI)
    roof.board.heat(RESUME_C + 1)
    roof.wait_shown("temperature    66.0 °C", "paused: the processor is at 66 °C")
    assert training.status() == psutil.STATUS_STOPPED
    assert PI not in roof.accepted(run_id)
    roof.board.heat(RESUME_C)
    report = roof.arena.finish(run_id)
    assert set(roof.arena.included(run_id)[1]) == {PI, EDGE}
    assert report["model_sha256"] == undisturbed
    roof.wait_shown("training       allowed", "temperature    65.0 °C")
    assert "training may go on" in roof.arena.log(PI)
    assert roof.arena.training_processes([PI]) == begun, "it went on where it was"


def test_a_run_that_goes_on_without_a_hot_device_does_not_wake_its_training(roof: Roof) -> None:
    roof.gates.hold(PI)
    run_id = roof.arena.submit(run_of(quorum=1, deadline_s=15.0))
    roof.gates.wait_reached(PI)
    training = roof.training()
    roof.board.heat(PAUSE_C)
    wait_for(lambda: training.status() == psutil.STATUS_STOPPED, "training rests", roof.story)
    roof.arena.finish(run_id)
    assert roof.arena.included(run_id)[1] == (EDGE,)
    # a process that stands still is ended all the same
    wait_for(lambda: not training.is_running(), "its training has ended", roof.story)


@pytest.mark.parametrize(
    ("celsius", "bits", "shown", "reason"),
    [
        (PAUSE_C + 5, 0, f"paused: the processor is at 80 °C: {RESTS}", RESTS),
        (40, 0x4, "throttled      throttled", "the firmware holds the processor back (throttled)"),
        (40, 0x1, "under-voltage  yes", "the power supply is too weak"),
    ],
    ids=["hot", "throttled", "under-voltage"],
)
def test_an_order_that_comes_at_a_bad_time_is_declined_with_its_reason(
    roof: Roof, celsius: float, bits: int, shown: str, reason: str
) -> None:
    roof.board.heat(celsius)
    roof.board.throttle(bits)
    roof.wait_shown(shown)
    run_id = roof.arena.submit(run_of(quorum=1))
    roof.arena.finish(run_id)
    assert roof.arena.included(run_id)[1] == (EDGE,)
    (declined,) = roof.arena.of(run_id, OrderDeclined)
    assert declined.device_id == PI
    home = roof.arena.site.folder.root
    told = rengo("runs", "show", run_id, home=home)
    assert told.code == 0
    (line,) = [line for line in told.out.splitlines() if PI in line and "refused" in line]
    assert line.startswith("round 1.1: ")
    assert reason in line
    folder = home / "devices" / PI
    status = rengo("agent", "status", "--data-dir", folder, home=home)
    assert reason in status.out, status
