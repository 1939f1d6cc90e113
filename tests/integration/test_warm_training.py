"""Runs of several tasks on one device: each has a process that waits for its next order."""

from __future__ import annotations

import hashlib
import os
import queue
import signal
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from broker.wire.messages import ModelRef, Order, UploadRef
from fl_client.agent.worker import TrainingWorker, WorkerSetup
from fl_client.bundles.store import DeviceBundles
from fl_client.jobs.folder import DeviceFolder
from fl_client.session import events as s
from fl_client.settings import BundleSettings
from fl_client.tasks.registry import load_task
from fl_client.training.child import ChildProgressed
from iot.policy import machine_policy
from iot.settings import DeviceSettings
from storage.transfer.files import Transfers
from storage.weights import write_safetensors
from tests.integration.broker_fixtures import eventually

TASKS = """
from pathlib import Path
from fl_client.tasks.digits import Digits

class First(Digits):
    def local_update(self, *given):
        if Path({short!r}).exists():
            raise MemoryError("no more")
        return super().local_update(*given)

class Second(Digits):
    pass
"""


class Device:
    """A worker with two tasks, on a device with a budget."""

    def __init__(self, folder: Path, **budget: Any) -> None:
        values = {"identity": folder / "d.json", "data_dir": folder / "data", "engine": "numpy"}
        settings = DeviceSettings.model_validate({**values, "profile": "cpu", "budget": budget})
        self.folder = DeviceFolder(settings.data_dir)
        self.policy = machine_policy(settings, "d", root=folder / "nowhere")
        self.short = folder / "short"
        own = folder / "own.py"
        own.write_text(textwrap.dedent(TASKS.format(short=str(self.short))))
        specs = {"first": f"{own}:First", "second": f"{own}:Second"}
        place = settings.data_dir / "bundles"
        bundles = DeviceBundles(BundleSettings(), place, Transfers(), specs)
        self.events: queue.Queue[object] = queue.Queue()
        setup = WorkerSetup("d", settings, "numpy")
        self.worker = TrainingWorker(setup, bundles, self.folder, self.policy, self.events.put)

    def train(self, task: str, round_number: int = 1) -> Any:
        """Do a job of the task's run; return how it ended."""
        order = Order(
            epoch=1,
            action="train",
            run_id=f"run-{task}",
            round=round_number,
            attempt=1,
            task=task,
            algorithm="fedavg",
            algorithm_settings={},
            training={},
            seed=0,
            model=ModelRef(url="u", key="k", sha256=hashlib.sha256().hexdigest(), size_bytes=1),
            upload=UploadRef(url="u", key="k"),
            time_left_s=60.0,
        )
        job = s.Job(s.JobKey.of(order), order)
        with self.folder.model(job).open("wb") as out:
            write_safetensors(load_task("digits").initial_weights(0), out)
        self.worker.submit(job)
        return self.end()

    def end(self) -> Any:
        """Return the next event that means something to the session."""
        while True:
            event = self.worker.translate(self.events.get(timeout=60))
            if event is not None and not isinstance(event, ChildProgressed):
                return event

    def pid_of(self, task: str) -> int:
        assert isinstance(self.train(task), s.WorkFinished)
        return self.worker.child_pids[-1]

    def close(self) -> None:
        self.worker.close("the test ends")
        self.policy.close()


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    made = Device(tmp_path)
    yield made
    made.close()


def test_two_runs_that_take_turns_start_two_processes_in_all(device: Device) -> None:
    first, second = device.pid_of("first"), device.pid_of("second")
    turns = [device.pid_of(task) for task in ("first", "second", "first", "second")]
    assert turns == [first, second] * 2
    device.worker.end_run("run-first")
    assert device.worker.child_pids == [second]
    assert not psutil.pid_exists(first)
    device.worker.end_run("run-second")
    assert device.worker.child_pids == []


def test_a_device_with_a_memory_budget_keeps_one(tmp_path: Path) -> None:
    device = Device(tmp_path, memory="300MiB")
    try:
        first, second = device.pid_of("first"), device.pid_of("second")
        assert device.worker.child_pids == [second]
        assert not psutil.pid_exists(first)
    finally:
        device.close()


def test_a_process_that_is_killed_while_it_waits_fails_no_job(device: Device) -> None:
    first, second = device.pid_of("first"), device.pid_of("second")
    os.kill(first, signal.SIGKILL)
    eventually(lambda: device.worker.child_pids == [second])
    assert device.pid_of("second") == second
    assert device.pid_of("first") not in {first, second}


def test_a_job_that_runs_short_of_memory_has_it_for_itself(device: Device) -> None:
    waiting = device.pid_of("second")
    device.short.touch()
    failed = device.train("first")
    assert isinstance(failed, s.JobFailed)
    assert failed.memory == "short"
    assert not psutil.pid_exists(waiting)
    (alone,) = device.worker.child_pids
    device.short.unlink()
    assert device.pid_of("first") == alone


def test_a_pause_holds_all_of_them(device: Device) -> None:
    pids = [device.pid_of("first"), device.pid_of("second")]
    limiter = vars(device.policy)["_limiter"]
    limiter.set_paused(paused=True)
    for pid in pids:
        eventually(lambda pid=pid: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    limiter.set_paused(paused=False)
    assert [device.pid_of("first"), device.pid_of("second")] == pids
