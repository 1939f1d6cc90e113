"""What a researcher asks of runs, by the command line, against a real site with two devices."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rengo.operator.runs import wait_for_devices
from rengo.site.device_process import DeviceSpec
from rengo.site.site import Site
from tests.integration.commands import rengo
from tests.integration.test_cli_runs import DEVICES, DONE, USAGE, document


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A site whose two devices have the digits and measure them."""
    folder = tmp_path_factory.mktemp("home")
    with Site(folder) as site:
        specs = [
            DeviceSpec(name, engine="numpy", index=index, count=2)
            for index, name in enumerate(DEVICES)
        ]
        site.start_devices(specs, "digits")
        with site.connect() as client:
            wait_for_devices(client, DEVICES, 60.0)
        yield folder


def test_a_run_ends_when_no_better_version_comes_and_keeps_its_best(
    home: Path, tmp_path: Path
) -> None:
    settings = {
        "best.patience": 3,
        "best.min_delta": 0.9,  # only the first version is better than none
        "models.keep": 2,
        "schedule.name": "cosine",
        "training.weight_decay": 0.001,
        "training.clip_norm": 5,
        "evaluation.on": "devices",
    }
    flags = [f"--set={key}={value}" for key, value in settings.items()]
    told = document(home, "run", "digits", "--rounds", "60", *flags, "--output", str(tmp_path))
    assert 4 <= told["rounds_completed"] < 60
    assert told["best_version"] == 1
    run_id = told["run_id"]
    shown = document(home, "runs", "show", run_id)
    assert (shown["status"], shown["best_value"]) == ("completed", told["best_value"])
    assert shown["reason"].endswith("stopped early")
    best = document(home, "models", "show", f"{run_id}.best")
    assert (best["version"], best["tags"]) == (1, [f"{run_id}.best"])
    rows = document(home, "models", "ls")["models"]
    kept = [row["version"] for row in rows if row["run_id"] == run_id]
    assert sorted(kept) == [1, told["rounds_completed"] - 1, told["rounds_completed"]]
    lines = rengo("runs", "show", run_id, home=home)
    assert lines.code == DONE
    assert f"best      version 1, compared by {best['metrics']['accuracy']:.4f}" in lines.out


def test_a_run_goes_on_where_another_ended(home: Path, tmp_path: Path) -> None:
    slow = ("--set", "training.local_epochs=1", "--set", "training.learning_rate=0.05")
    output = ("--output", str(tmp_path))
    run_id = document(home, "run", "digits", "--rounds", "2", *slow, *output)["run_id"]
    last = document(home, "models", "show", run_id)
    new = document(home, "runs", "extend", run_id, "--rounds", "2")["run_id"]
    followed = document(home, "runs", "follow", new)
    assert (followed["status"], followed["rounds_completed"]) == ("completed", 2)
    assert followed["measured"] > last["metrics"]["accuracy"], "it is trained on"
    first = document(home, "models", "show", f"{new}:0")["manifest"]
    assert (first["sha256"], first["parent"]["run_id"]) == (last["sha256"], run_id)
    told = rengo("runs", "extend", new, "--rounds", "0", home=home)
    assert told.code == USAGE
    assert "'rounds'" in told.line
