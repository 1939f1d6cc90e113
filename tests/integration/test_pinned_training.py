"""Agents' training processes on one machine, each kept to its own accelerators."""

from __future__ import annotations

import hashlib
import queue
from pathlib import Path

import pytest

from broker.wire.messages import ModelRef, Order, UploadRef
from fl_client.agent.resource_policy import Unbounded
from fl_client.agent.worker import TrainingWorker, WorkerSetup
from fl_client.bundles.store import BundleSettings, DeviceBundles
from fl_client.jobs.folder import DeviceFolder
from fl_client.machine.accelerators import Accelerator
from fl_client.session import events as s
from fl_client.settings import AgentSettings
from fl_client.tasks.registry import load_task
from fl_client.training.child import ChildProgressed
from storage.transfer.files import Transfers
from storage.weights import write_safetensors

TASK = """
import os

from fl_client.tasks.base import Task


class Looking(Task):
    def local_update(self, weights, context):
        shown = os.environ["CUDA_VISIBLE_DEVICES"]
        seen = {"first": "GPU-1", "second": "GPU-2", "both": "GPU-2,GPU-1"}
        return weights * 0, 1, {name: shown == handles for name, handles in seen.items()}
"""


def looked(folder: Path, *accelerators: Accelerator) -> set[str]:
    """Let a training process tell what it sees."""
    folder.mkdir()
    (folder / "own.py").write_text(TASK)
    settings = AgentSettings(identity=folder / "d.json", data_dir=folder / "data", engine="numpy")
    events: queue.Queue[object] = queue.Queue()
    place = DeviceFolder(settings.data_dir)
    tasks = {"looking": f"{folder / 'own.py'}:Looking"}
    bundles = DeviceBundles(BundleSettings(), folder / "bundles", Transfers(), tasks)
    worker = TrainingWorker(
        WorkerSetup("d", settings, "numpy", accelerators), bundles, place, Unbounded(), events.put
    )
    job = s.Job(s.JobKey("run", "train", 1, 1), order())
    with place.model(job).open("wb") as out:
        write_safetensors(load_task("digits").initial_weights(0), out)
    worker.submit(job)
    try:
        while True:
            event = worker.translate(events.get(timeout=60))
            if event is not None and not isinstance(event, ChildProgressed):
                assert isinstance(event, s.WorkFinished), event
                return {name for name, seen in event.outcome.metrics.items() if seen}
    finally:
        worker.close("the test ends")


def order() -> Order:
    return Order(
        epoch=1,
        action="train",
        run_id="run",
        round=1,
        attempt=1,
        task="looking",
        algorithm="fedavg",
        algorithm_settings={},
        training={},
        seed=0,
        model=ModelRef(url="u", key="k", sha256=hashlib.sha256().hexdigest(), size_bytes=1),
        upload=UploadRef(url="u", key="k"),
        time_left_s=60.0,
    )


def test_a_training_process_sees_its_own_accelerators_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1,GPU-2")
    first = Accelerator("cuda:0", handle="GPU-1")
    second = Accelerator("cuda:1", handle="GPU-2")
    assert looked(tmp_path / "a", first) == {"first"}
    assert looked(tmp_path / "b", second) == {"second"}
    # in the order of the settings
    assert looked(tmp_path / "c", second, first) == {"both"}
    assert looked(tmp_path / "d", Accelerator("cpu")) == set()
