"""An order that is lost is sent again by the server, over the real broker."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fl_server.rounds.machine import RESEND_S
from tests.chaos.arena import Arena, Opened
from tests.chaos.scripted_device import ScriptedDevice

NAMES = ("idle", "busy")
# for the messages themselves, on a machine that does much else
_SLACK_S = 5.0


@pytest.fixture(scope="module")
def arena(folder: Path) -> Iterator[Arena]:
    with Opened(folder, "digits") as opened:
        yield opened


@pytest.fixture
def devices(arena: Arena) -> Iterator[dict[str, ScriptedDevice]]:
    made = {name: ScriptedDevice(arena.site.member(name), "digits") for name in NAMES}
    arena.wait_online(set(NAMES))
    yield made
    for device in made.values():
        device.stop()


def test_an_order_that_is_lost_twice_comes_again_within_the_stated_time(
    arena: Arena, devices: dict[str, ScriptedDevice]
) -> None:
    settings = {
        "rounds": 1,
        "cohort": {"size": 2, "quorum": 2, "deadline_s": 120.0},
        "evaluation": {"on": "none"},
    }
    run_id = arena.submit(settings)
    orders = {name: device.order(run_id, 1) for name, device in devices.items()}
    devices["busy"].be("training")
    for _ in range(2):  # as if what came had been lost
        began_s = time.monotonic()
        orders["idle"] = devices["idle"].order(run_id, 1)
        waited_s = time.monotonic() - began_s
        print(f"a lost order came again after {waited_s:.2f} s")
        assert waited_s <= RESEND_S + _SLACK_S
    for name, device in devices.items():
        size = device.model(orders[name]).layout.size
        device.send(orders[name], np.zeros(size, np.float32), 10)
    arena.finish(run_id)
