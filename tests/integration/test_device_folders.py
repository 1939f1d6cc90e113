"""`rengo demo --data`: each device learns from the sub-folder that is its own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tests.integration.commands import rengo

TASK = """\
from rengo import Linear, Task, TrainingSettings

class Pump(Task):
    training = TrainingSettings(local_epochs=5, learning_rate=0.5)

    def model(self):
        return [Linear(2, 2)]

    def data(self, device):
        source = {"kind": "csv", "features": ["rms", "peak"], "label": "state"}
        held_out = 0.0 if device.role == "trainer" else 0.99
        described = {"source": source, "classes": ["ok", "worn"], "held_out": held_out}
        train, judged = device.dataset(described).splits()
        return train, judged
"""
ROWS = {"alice": 30, "bob": 50, "evaluator": 400}


def write_logs(data: Path) -> None:
    for seed, (name, count) in enumerate(ROWS.items()):
        (data / name).mkdir(parents=True)
        random = np.random.default_rng(seed)
        worn = random.random(count) < 0.5
        readings = random.normal(0, 0.3, (count, 2)) + np.where(worn[:, None], 1.0, -1.0)
        lines = [
            f"{rms:.3f},{peak:.3f},{'worn' if state else 'ok'}"
            for (rms, peak), state in zip(readings, worn, strict=True)
        ]
        (data / name / "log.csv").write_text("\n".join(["rms,peak,state", *lines, ""]))


def test_devices_learn_from_their_folders_and_the_evaluator_measures_on_its_own(
    tmp_path: Path,
) -> None:
    write_logs(tmp_path / "data")
    (tmp_path / "pump.py").write_text(TASK)
    told = rengo(
        *("demo", "--task", str(tmp_path / "pump.py:Pump"), "--data", str(tmp_path / "data")),
        *("--rounds", "2", "--output", str(tmp_path / "out"), "--json", str(tmp_path / "run.json")),
        patience_s=150,
    )
    assert told.code == 0, told
    for line in ("gpu-1 has the data in alice", "pi-1 has the data in bob"):
        assert line in told.out
    document = json.loads((tmp_path / "run.json").read_text())
    assert {each["id"] for each in document["devices"]} == {"gpu-1", "pi-1", "evaluator-1"}
    # the two states are three deviations apart in each of two readings
    assert document["accuracy"] > 0.95
