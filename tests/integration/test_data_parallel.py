"""A real device whose orders run on two CPU workers, beside one that has a single worker."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from algorithms.fedavg import FedAvg
from fl_client.datasets.device import Device
from fl_client.engines.base import load_engine
from fl_client.models.local_round import LocalRound
from fl_client.tasks.registry import load_task
from rengo.operator.runs import wait_for_devices
from rengo.site.device_process import DeviceSpec
from rengo.site.site import Site
from storage.weights import read_safetensors
from tests.integration.commands import rengo

SEED, NAME = 5, "twofold"
TASK = """
import threading
from pathlib import Path

import numpy as np

from fl_client.models.layers import Conv2d, Dropout, Flatten, Linear, ReLU, Reshape
from fl_client.models.settings import TrainingSettings
from fl_client.tasks.base import Task

LOG = Path(__file__).with_name("threads.log")


class Shared(Task):
    training = TrainingSettings(local_epochs=2, batch_size=9, learning_rate=0.1, momentum=0.9)

    def model(self):
        return [
            *(Reshape((1, 8, 8)), Conv2d(1, 4, 3), ReLU(), Flatten()),
            *(Dropout(0.3), Linear(144, 3)),
        ]

    def data(self, device):
        x = np.random.default_rng(device.index).normal(size=(60, 64)).astype(np.float32)
        return (x, x[:, :3].argmax(1)), None

    def training_step(self, model, batch):
        with LOG.open("a") as log:
            print(threading.current_thread().name.partition("_")[0], len(batch[1]), file=log)
        return super().training_step(model, batch)
"""


def test_an_order_is_trained_by_two_workers_to_the_model_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, home = tmp_path / "shared_task.py", tmp_path / "home"
    file.write_text(TASK)
    spec = f"{file}:Shared"
    monkeypatch.setenv("RENGO_AGENT_ACCELERATORS", "cpu:0,cpu:1")
    with Site(home) as site:
        site.start_devices([DeviceSpec(NAME, engine="torch")], spec)
        with site.connect() as client:
            wait_for_devices(client, (NAME,), 60.0)
        shown = rengo("devices", "show", NAME, home=home).out
        ran = rengo("run", spec, "--rounds", "1", "--set", f"seed={SEED}", "--json", "-", home=home)
        assert ran.code == 0, ran
        document = json.loads(ran.out)
        run = json.loads(rengo("runs", "show", document["run_id"], "--json", "-", home=home).out)
    assert "cpu:0 (float32), cpu:1 (float32)" in shown
    # 60 examples by 9: two workers have 5 and 4, or 3 of the last 6; a new size is taken in turns
    lines = (tmp_path / "threads.log").read_text().splitlines()
    assert sorted({line.split()[1] for line in lines}) == ["3", "4", "5"]
    assert sum(line.startswith("MainThread") for line in lines) == 4
    assert sum(line.startswith("replica") for line in lines) == 2 * 14 - 4
    (device,) = run["devices"]
    # the measured speed is that of both together
    assert device["steps"] == device["full_steps"] == 14
    assert device["step_s"] > 0
    model = read_safetensors(Path(document["model_path"]))
    assert np.allclose(model.vector, expected(spec), atol=1e-5)


def expected(spec: str) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Return the model after the round, trained by one worker in this process."""
    task = load_task(spec)
    plan = LocalRound(FedAvg(), task.training, SEED, 1, NAME)
    start = task.initial_weights(SEED)
    data, _ = task.data(Device(NAME))
    update = load_engine("torch", task).train(start, data, plan)
    assert np.abs(update.vector).max() > 0.05
    return start.vector + update.vector
