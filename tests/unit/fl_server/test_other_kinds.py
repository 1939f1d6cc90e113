"""What operators are told of a run of a kind that they added, and what is kept of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fl_server.flows.events import DeviceAnswered, DeviceJoined
from fl_server.kinds.listing import FLOW_KINDS
from tests.integration.two_phase import PHASES, TwoPhaseKind
from tests.operations import Disk, Life

KINDS = {**FLOW_KINDS, "two_phase": TwoPhaseKind()}
DEFINITION = {"flow": "two_phase", "task": "digits", "rounds": 2, "cohort": {"size": 2}}
DEVICES = ("d-1", "d-2")
MODEL = b"version 0"


@pytest.fixture
def life(tmp_path: Path) -> Iterator[Life]:
    made = Life(Disk(tmp_path / "disk"), kinds=KINDS)
    yield made
    made.end()


def begun(life: Life) -> str:
    """Begin a run, whose version 0 is in the store, and return its id."""
    told = life.do("runs_prepare", definition=DEFINITION, size_bytes=len(MODEL))
    run_id = str(told["run_id"])
    life.disk.store.put(life.plane.keys(run_id).version(0), MODEL)
    life.do("runs_submit", run_id=run_id, sha256=hashlib.sha256(MODEL).hexdigest())
    return run_id


def answer(life: Life, run_id: str, number: int, phase: str) -> None:
    """Let every device answer one phase of a round."""
    for device_id in DEVICES:
        payload = np.array([1, 2], np.int64).tobytes()
        event = DeviceAnswered(device_id, "exchange", number, 1, 0, payload=payload, phase=phase)
        life.runner.handle(run_id, event)


def test_its_rounds_and_devices_are_shown_while_it_goes_on_and_when_it_has_ended(
    life: Life,
) -> None:
    run_id = begun(life)
    assert life.do("runs_show", run_id=run_id)["history"] == []
    for device_id in DEVICES:
        life.runner.handle(run_id, DeviceJoined(device_id))
    for phase in PHASES:
        answer(life, run_id, 1, phase)
    shown = life.do("runs_show", run_id=run_id)
    assert [(each["round"], each["outcome"]) for each in shown["history"]] == [
        (1, "committed"),
        (2, "collecting"),
    ]
    assert (shown["history"][0]["invited"], shown["history"][0]["included"]) == (2, [*DEVICES])
    assert [(each["id"], each["rounds"]) for each in shown["devices"]] == [("d-1", 1), ("d-2", 1)]
    for phase in PHASES:
        answer(life, run_id, 2, phase)
    life.plane.run()
    ended = life.do("runs_show", run_id=run_id)
    assert ended["status"] == "completed"
    assert [each["outcome"] for each in ended["history"]] == 2 * ["committed"]
    assert [each["rounds"] for each in ended["devices"]] == [2, 2]
    assert len(ended["round_s"]) == 2


@pytest.mark.parametrize("restarted", [False, True])
def test_the_model_that_it_began_with_outlives_a_cleanup(
    life: Life, tmp_path: Path, restarted: bool
) -> None:
    """It commits no version, so that the one that it began with is its latest."""
    run_id = begun(life)
    key = life.plane.keys(run_id).version(0)
    stray = life.plane.keys(run_id).update(1, 1, "d-1")
    life.disk.store.put(stray, b"an update that nobody wants")
    life.do("runs_stop", run_id=run_id)
    life.plane.run()
    if restarted:
        life.end()
        life = Life(life.disk, kinds=KINDS)
    assert life.do("runs_show", run_id=run_id)["model_key"] == key
    assert life.do("models_gc")["keys"] == [stray]
    assert {info.key for info in life.disk.store.list("")} == {key}
    if restarted:
        life.end()
