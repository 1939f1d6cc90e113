"""The page "Write a task": what it shows is in the examples, and each of them learns."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import algorithms
from fl_client.tasks.base import Task
from fl_client.tasks.registry import load_task
from rengo import anomaly_threshold, load_model
from storage.weights import Weights
from tests.examples import federated, pages
from tests.integration.commands import rengo
from tests.support import soaking

PAGE = "docs/write-a-task.md"
TASKS = {
    "first": "Pumps",
    "images": "Images",
    "regression": "Heating",
    "table": "Flowers",
    "multi_label": "Faults",
    "text": "Messages",
    "anomalies": "Anomalies",
}
# after how many rounds an evaluator measures what
LEARNED = {
    "first": (20, "accuracy", 0.9),
    "images": (3, "accuracy", 0.9),
    "regression": (6, "r2", 0.9),
    "table": (10, "accuracy", 0.9),
    "multi_label": (3, "all_right", 0.9),
    "text": (3, "accuracy", 0.95),
}
COMMANDS = [body for body in pages.blocks(PAGE, "") if "sample_data.py" in body]


def sample(kind: str, data: Path) -> Path:
    """Write an example's data as the page says."""
    command = [sys.executable, "examples/sample_data.py", kind, str(data)]
    subprocess.run(command, cwd=pages.ROOT, check=True, capture_output=True)
    return data


def trained(kind: str, data: Path, rounds: int) -> tuple[Task, Weights, dict[str, float]]:
    """Return an example's task, its weights after some rounds, and what an evaluator measures."""
    task = load_task(f"{pages.ROOT}/examples/{kind}.py:{TASKS[kind]}")
    weights, metrics = federated.train_on_folders(
        task, algorithms.load("fedavg"), data, rounds=rounds
    )
    return task, weights, metrics


@pytest.mark.parametrize("kind", LEARNED)
def test_each_example_learns(kind: str, tmp_path: Path) -> None:
    rounds, metric, least = LEARNED[kind]
    task, _, metrics = trained(kind, sample(kind, tmp_path), rounds)
    untrained = trained(kind, tmp_path, 0)[2][metric]
    assert metrics[metric] >= least > untrained
    assert metric in (task.goals or {"accuracy": "higher"})


def test_the_ten_lines_are_ten() -> None:
    assert len((pages.ROOT / "examples/first.py").read_text().splitlines()) == 10


def test_the_page_shows_every_example_as_it_is() -> None:
    shown = pages.files(PAGE)
    assert set(shown) == {f"examples/{kind}.py" for kind in TASKS}
    for path, text in shown.items():
        assert text == (pages.ROOT / path).read_text(encoding="utf-8"), path


def test_the_page_says_how_each_is_run() -> None:
    for kind, name in TASKS.items():
        wanted = f"--task examples/{kind}.py:{name} --data data/{kind}"
        assert any(
            wanted in body and f"sample_data.py {kind} data/{kind}" in body for body in COMMANDS
        )


def test_what_no_device_has_seen_is_above_the_threshold_that_they_agree_on(tmp_path: Path) -> None:
    """A device's normal readings are below it but for a few; readings that do not belong, above."""
    task, weights, measured = trained("anomalies", sample("anomalies", tmp_path), 6)
    threshold = anomaly_threshold(measured)
    readings = np.genfromtxt(tmp_path / "bob" / "readings.csv", delimiter=",", skip_header=1)
    strange = np.random.default_rng(0).permuted(readings, axis=0)
    errors = [reproduction_errors(task, weights, each) for each in (readings, strange)]
    assert (errors[0] > threshold).mean() < 0.1
    assert (errors[1] > threshold).mean() > 0.9


def reproduction_errors(task: Task, weights: Weights, readings: Any) -> Any:
    """Return how badly each reading is reproduced, worked out from the layers' weights."""
    w, outputs = weights.arrays(), readings
    for index in (0, 2, 3, 5):
        outputs = outputs @ w[f"{index}.weight"].T + w[f"{index}.bias"]
        outputs = np.tanh(outputs) if index in {0, 3} else outputs
    return ((outputs - readings) ** 2).mean(1)


@pytest.mark.parametrize("kind", soaking(["images", "multi_label"], lambda each: each != "images"))
def test_a_user_s_commands_train_it(kind: str, tmp_path: Path) -> None:
    data, told = sample(kind, tmp_path / "data"), tmp_path / "run.json"
    options = ["--data", data, "--rounds", "2", "--output", tmp_path / "out", "--json", told]
    task = f"{pages.ROOT}/examples/{kind}.py:{TASKS[kind]}"
    done = rengo("demo", "--task", task, *options, home=tmp_path, patience_s=120)
    assert done.code == 0, done.err
    run = json.loads(told.read_text())
    assert run["rounds_completed"] == 2
    assert len(run["devices"]) == 3
    assert run["measured"] > 0.5
    assert load_model(run["model_path"])


def test_the_page_s_other_code_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    others = [body for body in pages.blocks(PAGE, "python") if not body.startswith("# examples/")]
    (module,) = [body for body in others if "import torch" in body]
    (threshold,) = [body for body in others if "anomaly_threshold" in body]
    (tmp_path / "examples").symlink_to(pages.ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(pages.ROOT / "examples"))
    defined: dict[str, Any] = {"__name__": "users_module"}
    exec(module, defined)
    assert defined["Module"]().initial_weights(0).arrays()["4.weight"].shape == (3, 128)
    sample("anomalies", tmp_path / "data" / "anomalies")
    exec(threshold, {})
    assert 0 < float(capsys.readouterr().out) < 0.02
