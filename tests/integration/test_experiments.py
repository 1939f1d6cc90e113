"""What a researcher asks of runs, by the command line, against a real site with two devices."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rengo.cli.codes import FAILED, INTERRUPTED
from rengo.operator.runs import wait_for_devices
from rengo.site.device_process import DeviceSpec
from rengo.site.site import Site
from runtime.files import file_sha256
from tests.integration.commands import rengo, surroundings
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
    assert told["spread"] == shown["spread"]
    assert (shown["spread"]["devices"], shown["spread"]["version"]) == (2, told["rounds_completed"])
    assert shown["spread"]["worst_tenth"] <= shown["spread"]["mean"]
    best = document(home, "models", "show", f"{run_id}.best")
    assert file_sha256(Path(told["best_model_path"])) == best["sha256"] != told["model_sha256"]
    assert (best["version"], best["tags"]) == (1, [f"{run_id}.best"])
    rows = document(home, "models", "ls")["models"]
    kept = [row["version"] for row in rows if row["run_id"] == run_id]
    assert sorted(kept) == [1, told["rounds_completed"] - 1, told["rounds_completed"]]
    lines = rengo("runs", "show", run_id, home=home)
    assert lines.code == DONE
    assert f"best      version 1, compared by {best['metrics']['accuracy']:.4f}" in lines.out


def test_a_run_goes_on_where_another_ended(home: Path, tmp_path: Path) -> None:
    values = {
        "algorithm.name": "fedavgm",
        "training.local_epochs": 1,
        "training.learning_rate": 0.05,
    }
    flags = [f"--set={key}={value}" for key, value in values.items()]
    output = ("--output", str(tmp_path))
    run_id = document(home, "run", "digits", "--rounds", "2", *flags, *output)["run_id"]
    last = document(home, "models", "show", run_id)
    new = document(home, "runs", "extend", run_id, "--rounds", "2")["run_id"]
    followed = document(home, "runs", "follow", new)
    assert (followed["status"], followed["rounds_completed"]) == ("completed", 2)
    assert followed["measured"] > last["metrics"]["accuracy"], "it is trained on"
    first = document(home, "models", "show", f"{new}:0")["manifest"]
    assert (first["sha256"], first["parent"]["run_id"]) == (last["sha256"], run_id)
    assert first["state_sha256"] == last["manifest"]["state_sha256"] != ""
    told = rengo("runs", "extend", new, "--rounds", "0", home=home)
    assert told.code == USAGE
    assert "'rounds'" in told.line


def test_a_sweep_with_seeds_is_compared_by_variant(home: Path, tmp_path: Path) -> None:
    told = document(
        home,
        *("run", "digits", "--rounds", "2", "--seeds", "2", "--group", "rates", "--at-once"),
        *("--sweep", "training.learning_rate=0.1,0.001"),
    )
    assert told["group"] == "rates"
    fast, slow = told["variants"]
    assert fast["variant"] == "training.learning_rate=0.1"
    assert [run["seed"] for run in fast["runs"]] == [0, 1]
    assert fast["final"]["mean"] > slow["final"]["mean"]
    assert fast["final"]["deviation"] is not None
    plot = tmp_path / "rates.png"
    shown = rengo("runs", "compare", "rates", "--target", "0.5", "--plot", plot, home=home)
    assert shown.code == DONE, shown
    assert plot.read_bytes().startswith(b"\x89PNG")
    rows = [line for line in shown.out.splitlines() if line.startswith("training.")]
    assert len(rows) == 2
    assert "(0 of 2)" in rows[1]
    alone = document(home, "runs", "compare", slow["runs"][0]["run_id"], fast["runs"][0]["run_id"])
    assert [each["variant"] for each in alone["variants"]] == [slow["variant"], fast["variant"]]


def test_a_run_that_fails_does_not_keep_the_others_from_running(home: Path) -> None:
    told = rengo(
        *("run", "digits", "--rounds", "1", "--json", "-"),
        # of ten classes
        *("--sweep", "training.class_weights=[1,2],[1,1,1,1,1,1,1,1,1,2]"),
        home=home,
    )
    assert told.code == FAILED, told
    failed, good = json.loads(told.out)["variants"]
    assert [each["runs"][0]["status"] for each in (failed, good)] == ["failed", "completed"]


def test_a_wrong_value_of_a_sweep_is_told_before_any_run_begins(home: Path) -> None:
    before = document(home, "runs", "ls")["runs"]
    told = rengo("run", "digits", "--sweep", "training.momentum=0.5,1.5", home=home)
    assert told.code == USAGE
    assert "momentum" in told.line
    assert document(home, "runs", "ls")["runs"] == before


def test_an_interrupted_sweep_says_what_goes_on(home: Path, tmp_path: Path) -> None:
    argv = [
        *(sys.executable, "-m", "rengo", "run", "digits", "--rounds", "100000"),
        *("--seeds", "3", "--group", "cut"),
    ]
    process = subprocess.Popen(
        argv, stdout=subprocess.PIPE, text=True, env=surroundings(home), cwd=tmp_path
    )
    assert process.stdout is not None
    try:
        begun = next(line for line in process.stdout if line.startswith("run 1 of 3: seed 0: "))
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=30.0)
    finally:
        process.kill()
        process.communicate()
    run_id = begun.split()[-1]
    assert process.returncode == INTERRUPTED
    assert "Interrupted. 1 of 3 runs were submitted; what was goes on" in rest
    assert f" runs show {run_id}" in rest
    (row,) = document(home, "runs", "compare", "cut")["variants"]
    assert [run["status"] for run in row["runs"]] == ["running"]
    assert rengo("runs", "stop", run_id, home=home).code == DONE
