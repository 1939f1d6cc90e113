"""Real runs whose numbers are large train; those whose updates never count end, and say why."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rengo import Site
from rengo.operator.client import OperatorClient
from rengo.operator.runs import follow, submit, wait_for_devices
from rengo.site.device_process import DeviceSpec
from tests.integration.commands import rengo

TASKS = Path(__file__).with_name("large_numbers.py")
FAILED = 3
PATIENCE_S = 120.0


@pytest.fixture(scope="module")
def client() -> Iterator[OperatorClient]:
    """A site with two devices for each of two tasks, one of them a torch model."""
    fleets = {"RawSensors": "torch", "MillionsOfRows": "numpy"}
    with Site() as site, site.connect() as client:
        names = []
        for task, engine in fleets.items():
            specs = [
                DeviceSpec(f"{engine}-{index}", engine=engine, index=index, count=2)
                for index in range(2)
            ]
            site.start_devices(specs, f"{TASKS}:{task}")
            names += [spec.name for spec in specs]
        wait_for_devices(client, names, PATIENCE_S)
        yield client


@pytest.mark.parametrize("task", ["RawSensors", "MillionsOfRows"])
def test_it_trains(task: str, client: OperatorClient) -> None:
    if task == "RawSensors":
        pytest.importorskip("torch")
    definition = {
        "rounds": 4,
        "cohort": {"size": 2, "quorum": 2, "deadline_s": 60.0, "max_attempts": 1},
        "evaluation": {"on": "devices"},
    }
    report = follow(client, submit(client, f"{TASKS}:{task}", definition)).report
    assert report.rounds_completed == 4
    assert report.accuracy is not None
    assert report.accuracy > 0.9


def test_updates_that_never_count_end_the_run_with_their_reason(tmp_path: Path) -> None:
    """At once: neither attempt waits for its deadline."""
    settings = ("--rounds", "2", "--clients", "2", "--set", "cohort.deadline_s=600")
    told = rengo(
        "demo",
        "--task",
        f"{TASKS}:Diverged",
        *settings,
        "--output",
        tmp_path,
        patience_s=PATIENCE_S,
    )
    assert told.code == FAILED
    assert told.line.startswith("run diverged-")
    assert "round 1, attempt 2: every update was refused; that of gpu-1: training " in told.line
    assert told.out.count("was abandoned and is tried again") == 1
