"""A site's disk, or that of a part, is full in the middle of a run, and freed: it completes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from fl_server.rounds.facts import RunCompleted
from rengo.doctor.checks import diagnose
from rengo.site.preparation import SiteOptions
from tests.chaos.arena import GATED_TASK, Gates, Opened, numpy_fleet, wait_for
from tests.disks import FullDisk, small_disk
from tests.support import soaking

RUN = {
    "rounds": 3,
    "seed": 5,
    "cohort": {"size": 2, "deadline_s": 20.0},
    "evaluation": {"on": "devices"},
}
EDGES = ["edge-1", "edge-2"]
FULL_S = 25.0
# of what each disk holds, whose folder, and which kind of store the site has
DISKS: dict[str, tuple[str, Literal["juicefs", "seaweedfs"]]] = {
    "site": ("", "juicefs"),
    "broker": ("broker", "juicefs"),
    "juicefs": ("store", "juicefs"),
    "seaweedfs": ("store", "seaweedfs"),
    "server": ("server", "juicefs"),
    "device": ("devices/edge-1", "juicefs"),
}
HOLDS = {"site": "broker, store, server, edge-1, edge-2", "device": "edge-1"}
HOLDS |= {"juicefs": "store", "seaweedfs": "store"}


@pytest.fixture
def gates(folder: Path) -> Iterator[Gates]:
    gates = Gates(folder / "gates")
    yield gates
    gates.open_all()


@pytest.mark.parametrize("disk", soaking(DISKS, lambda disk: disk != "site"))
def test_a_run_goes_on_when_a_full_disk_is_freed(
    tmp_path: Path, gates: Gates, disk: str, caplog: pytest.LogCaptureFixture
) -> None:
    within, store = DISKS[disk]
    path = tmp_path / "site" / within
    # a device wants 64 MiB left free
    with small_disk(path, 256 if disk == "site" else 128) as mounted:
        if not mounted:
            pytest.skip("this user may mount no disk")
        with Opened(tmp_path, GATED_TASK, options=SiteOptions(store=store)) as arena:
            arena.start_fleet([each for each in numpy_fleet() if each.name in EDGES])
            gates.hold("edge-1")
            run_id = arena.submit(RUN)
            arena.wait_accepted(run_id, {"edge-2"})
            gates.wait_reached("edge-1")
            with FullDisk(path):
                gates.release("edge-1")
                wait_for(lambda: "is full (" in caplog.text, "the full disk is told", arena.story)
                threading.Event().wait(FULL_S)  # so long nothing can be written
                assert not arena.of(run_id, RunCompleted)
                found = [each for each in diagnose(tmp_path / "site") if not each.ok]
            arena.finish(run_id)
            if disk in {"broker", "server"}:  # these do not go on by themselves
                assert arena.site.restarts(disk) > 0
    named = "disk" if disk == "site" else f"disk of {within}"
    assert (named, f"full (0 KiB free): {path}") in [(each.name, each.detail) for each in found]
    told = [each for each in caplog.messages if "is full (" in each]
    assert len(told) == 1
    assert f"it holds the data of {HOLDS.get(disk, disk)}, which goes on" in told[0]
