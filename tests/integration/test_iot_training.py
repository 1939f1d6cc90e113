"""Training that runs short of memory goes on with less: real processes under a real budget."""

from __future__ import annotations

import hashlib
import queue
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from broker.wire.messages import ModelRef, Order, UploadRef
from fl_client.agent.worker import TrainingWorker, WorkerSetup
from fl_client.bundles.store import BundleSettings, DeviceBundles
from fl_client.jobs.folder import DeviceFolder
from fl_client.machine.oom_kills import OomKills
from fl_client.session import events as s
from fl_client.session.machine import DeviceSession
from fl_client.tasks.registry import load_task
from fl_client.training.child import ChildProgressed
from iot.policy import machine_policy
from iot.settings import DeviceSettings
from storage.transfer.files import Transfers
from storage.weights import write_safetensors

# what it holds grows with the examples in memory, as a real training's does
SOURCE = """
    import signal, os, time
    from pathlib import Path
    import fl_client.tasks.digits as digits

    class Hungry(digits.{base}):
        name = "hungry"

        def local_update(self, weights, context):
            settings = context.round.settings
            at_once = settings.micro_batch or settings.batch_size
            with Path({log!r}).open("a") as log:
                print(at_once, file=log)
            {hold}
            return weights * 0, 10, {{}}
"""
# what is held is touched and kept until somebody looks
TOUCHED = "held = bytearray(at_once * (8 << 20)); time.sleep(1.0 if at_once > 8 else 0)"
# 8 are refused by the limit on what is reserved; 2 and the process itself are within the budget
RESERVED = "held = bytearray(at_once * (48 << 20))"
KILLED = "os.kill(os.getpid(), signal.SIGKILL) if at_once > 2 else None"


class Device:
    """A session and a worker, without a network."""

    def __init__(self, folder: Path, hold: str) -> None:
        self.log = folder / "batches.log"
        source = textwrap.dedent(SOURCE).format(
            base=type(load_task("digits")).__name__, log=str(self.log), hold=hold
        )
        (folder / "own.py").write_text(source)
        settings = DeviceSettings.model_validate(
            {
                "identity": folder / "d.json",
                "data_dir": folder / "data",
                "engine": "numpy",
                "budget": {"memory": "160MiB"},
            }
        )
        # no control groups, so that every machine shows the same
        self.policy = machine_policy(settings, "d", root=folder / "nowhere")
        self.events: queue.Queue[object] = queue.Queue()
        self.folder = DeviceFolder(settings.data_dir)
        bundles = DeviceBundles(
            BundleSettings(),
            settings.data_dir / "bundles",
            Transfers(),
            {"hungry": f"{folder / 'own.py'}:Hungry"},
        )
        self.worker = TrainingWorker(
            WorkerSetup("d", settings, "numpy"), bundles, self.folder, self.policy, self.events.put
        )
        # nor a kernel that counts its kills: by such a count these were not for memory
        vars(self.worker)["_oom_kills"] = OomKills(folder / "nowhere")
        self.session = DeviceSession()

    def train(self, round_number: int) -> s.Command:
        """Carry out an order; return the command that ends its work."""
        order = self.order(round_number)
        commands = self.session.handle(s.OrderArrived(order))
        assert self.session.active is not None
        path = self.folder.model(self.session.active)
        with path.open("wb") as out:
            write_safetensors(load_task("digits").initial_weights(0), out)
        commands = self.session.handle(s.ModelFetched(self.session.active.key))
        while True:
            for command in commands:
                if isinstance(command, s.UploadUpdate | s.SendDecline):
                    return command
                if isinstance(command, s.DoWork):
                    self.worker.submit(command.job)
            event = self.worker.translate(self.events.get(timeout=60))
            commands = []
            if event is not None and not isinstance(event, ChildProgressed):
                commands = self.session.handle(event)

    def order(self, round_number: int) -> Order:
        return Order(
            epoch=1,
            action="train",
            run_id="run",
            round=round_number,
            attempt=1,
            task="hungry",
            algorithm="fedavg",
            algorithm_settings={},
            training={"batch_size": 32},
            seed=0,
            model=ModelRef(url="u", key="k", sha256=hashlib.sha256().hexdigest(), size_bytes=1),
            upload=UploadRef(url="u", key="k"),
            time_left_s=60.0,
        )

    def batches(self) -> list[int]:
        return [int(line) for line in self.log.read_text().split()]

    def close(self) -> None:
        self.worker.cancel()
        self.worker.close("the test ends")
        self.policy.close()


Make = Callable[[str], Device]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[Device] = []

    def start(hold: str) -> Device:
        made.append(Device(tmp_path, hold))
        return made[-1]

    yield start
    for device in made:
        device.close()


@pytest.mark.parametrize(
    ("hold", "batches"),
    [(TOUCHED, [32, 8]), (RESERVED, [32, 8, 2]), (KILLED, [32, 32, 8, 2])],
    ids=["ended by its own measure", "MemoryError", "killed by somebody"],
)
def test_training_that_runs_short_goes_on_with_less(
    make: Make, hold: str, batches: list[int]
) -> None:
    device = make(hold)
    assert isinstance(device.train(1), s.UploadUpdate)
    assert device.batches() == batches
    device.session.handle(s.RunChanged("run", 1, False, 2, 1, closed=False))
    device.session.handle(s.UpdateUploaded(s.JobKey("run", "train", 1, 1)))
    assert isinstance(device.train(2), s.UploadUpdate)
    assert device.batches() == [*batches, batches[-1]], "the next round does not run short again"


def test_what_no_micro_batch_helps_is_declined_and_the_agent_lives(make: Make) -> None:
    device = make("raise MemoryError")
    end = device.train(1)
    assert isinstance(end, s.SendDecline)
    assert "out of memory with one example at a time" in end.reason
    assert device.batches() == [32, 8, 2, 1]
