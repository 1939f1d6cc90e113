"""`rengo broker` and `rengo store`, each by itself, say that their disk is full, and go on."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rengo.site.folder import SiteFolder
from rengo.site.preparation import Preparation
from rengo.site.preparation import SiteOptions as Options
from tests.disks import FullDisk, small_disk

_PATIENCE_S = 60.0


def wait_for(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@pytest.mark.parametrize("part", ["broker", "store"])
def test_a_part_by_itself_says_that_its_disk_is_full(tmp_path: Path, part: str) -> None:
    root, log = tmp_path / "site", tmp_path / "log"
    with small_disk(root / part, 64) as mounted:
        if not mounted:
            pytest.skip("this user may mount no disk")
        settings = Preparation(SiteFolder(root), Options()).settings[part]
        argv = [sys.executable, "-P", "-m", "rengo", part, "--config", str(settings)]
        with log.open("wb") as out, subprocess.Popen(argv, stdout=out, stderr=out) as process:
            try:
                wait_for(lambda: " serves " in log.read_text(), "it does not start")
                with FullDisk(root / part):
                    wait_for(lambda: "is full (" in log.read_text(), "nobody says so")
                wait_for(lambda: "has room again" in log.read_text(), "nobody says so")
                assert process.poll() is None
            finally:
                process.terminate()
                assert process.wait(_PATIENCE_S) == 0
    told = [line for line in log.read_text().splitlines() if "is full (" in line]
    assert len(told) == 1
    assert f"the disk of {root / part} is full (" in told[0]
