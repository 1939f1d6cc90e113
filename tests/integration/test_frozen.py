"""A frozen backbone with a trained head, by the real engines: what is sent and what is fetched."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from algorithms.base import Algorithm, Arrays, Batch, Local, Received, State
from algorithms.fedavg import FedAvg
from algorithms.fedprox import FedProx
from fl_client.datasets.device import Device
from fl_client.models.layers import Layers, Linear, ReLU
from fl_client.models.local_round import LocalRound
from fl_client.models.settings import TrainingSettings
from fl_client.tasks.base import Task
from fl_client.training.participant import Participant
from fl_server.aggregation.aggregator import AggregatedRun, RunAggregator, SubmittedUpdate
from fl_server.aggregation.model_cache import ModelCache
from fl_server.aggregation.spool import MemoryBudget
from fl_server.rounds.model import Model, Update
from fl_server.runs.patches import patches_to
from storage.store.memory import MemoryStore
from storage.transfer.byte_ranges import length
from storage.updates.header import UpdateHeader, read_header
from storage.updates.info import UpdateInfo
from storage.updates.stream import write_update
from storage.versions.keys import RunKeys
from storage.weights import Weights, encode_header, read_safetensors, write_safetensors
from tests.in_process import KeepAll

INPUTS, WIDTH, CLASSES = 600, 700, 10
BACKBONE = INPUTS * WIDTH + WIDTH
HEAD = WIDTH * CLASSES + CLASSES
KEYS = RunKeys("default", "run-1")


class _Data(Task):
    training = TrainingSettings(local_epochs=2, batch_size=8, learning_rate=0.1, momentum=0.5)

    def data(self, device: Device) -> tuple[Any, Any]:
        source = np.random.default_rng(device.index)
        split = (
            source.normal(size=(24, INPUTS)).astype(np.float32),
            source.integers(0, CLASSES, 24),
        )
        return split, split


class Frozen(_Data):
    """A torch module whose first layer asks for no gradient."""

    def model(self) -> torch.nn.Module:
        model = torch.nn.Sequential(
            torch.nn.Linear(INPUTS, WIDTH), torch.nn.ReLU(), torch.nn.Linear(WIDTH, CLASSES)
        )
        model[0].requires_grad_(requires_grad=False)
        return model


class AdamOnTheHead(Frozen):
    """The same with an optimiser of its own."""

    def optimizer(self, parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, weight_decay=0.1)


class Declared(_Data):
    """Layers for any engine; what is trained is up to the algorithm."""

    def model(self) -> Layers:
        return [Linear(INPUTS, WIDTH), ReLU(), Linear(WIDTH, CLASSES)]


@dataclass(frozen=True)
class HeadOnly(FedAvg):
    """Steps along the head's gradient alone: what no gradient is given for stays as it is."""

    def direction(
        self, batch: Batch, w: Arrays, got: Received, state: State, local: Local
    ) -> tuple[Arrays, State]:
        g = batch.gradient(w)
        return {name: grad for name, grad in g.items() if name.startswith("2.")}, state


class Run:
    """Two devices and an aggregator on a store in memory."""

    def __init__(self, folder: Path, task: Task, engine: str, algorithm: Algorithm) -> None:
        self.folder, self.algorithm, self.task = folder, algorithm, task
        self.devices = [
            Participant(task, Device(f"d-{index}", index=index, count=2), engine)
            for index in range(2)
        ]
        self.store = MemoryStore()
        self.aggregator = RunAggregator(
            AggregatedRun(KEYS, algorithm, 0, 2),
            KeepAll(),
            self.store,
            ModelCache(folder / "server", self.store),
            MemoryBudget(1 << 30),
        )
        data = io.BytesIO()
        self.weights = task.initial_weights(3)
        write_safetensors(self.weights, data)
        self.store.put(KEYS.version(0), data.getvalue())
        digest = hashlib.sha256(data.getvalue()).hexdigest()
        self.models = [Model(0, KEYS.version(0), digest, len(data.getvalue()))]

    def round(self) -> list[UpdateHeader]:
        """Train, send and aggregate once; return what the devices sent."""
        base, number, headers, submissions = self.models[-1], len(self.models), [], []
        for device in self.devices:
            plan = LocalRound(self.algorithm, self.task.training, 1, number, device.device.id)
            update = device.train(self.weights, plan)
            out = io.BytesIO()
            info = UpdateInfo(
                run_id=KEYS.run_id,
                round=number,
                attempt=1,
                device_id=device.device.id,
                base_sha256=base.sha256,
                layout_hash=self.weights.layout.hash,
                kind="delta",
                num_examples=update.num_examples,
            )
            written = write_update(out, info, update.vector)
            key = KEYS.update(number, 1, device.device.id)
            self.store.put(key, out.getvalue())
            headers.append(
                read_header(
                    io.BytesIO(out.getvalue()),
                    header_sha256=written.header_sha256,
                    max_bytes=1 << 30,
                )
            )
            said = Update(key, written.size_bytes, written.header_sha256, update.num_examples)
            submissions.append(SubmittedUpdate(device.device.id, number, 1, said))
        for submission in submissions:
            self.aggregator.verify(submission, base)
            self.aggregator.fold(submission, base)
        names = tuple(sorted(each.device_id for each in submissions))
        self.models.append(self.aggregator.aggregate((number, 1), names, base))
        self.weights = self.weights_of(number)
        return headers

    def weights_of(self, version: int) -> Weights:
        path = self.folder / "look.safetensors"
        path.write_bytes(self.bytes_of(version))
        return read_safetensors(path)

    def bytes_of(self, version: int) -> bytes:
        with self.store.open(KEYS.version(version)) as stream:
            return stream.read(1 << 30)


CASES = {
    "torch": (Frozen(), "torch", FedAvg()),
    "torch, fedprox": (Frozen(), "torch", FedProx(mu=0.1)),
    "torch, adamw": (AdamOnTheHead(), "torch", FedAvg()),
    "torch by the algorithm": (Declared(), "torch", HeadOnly()),
    "numpy by the algorithm": (Declared(), "numpy", HeadOnly()),
}


@pytest.mark.parametrize(("task", "engine", "algorithm"), CASES.values(), ids=CASES)
def test_a_frozen_backbone_is_neither_sent_nor_fetched(
    task: Task, engine: str, algorithm: Algorithm, tmp_path: Path
) -> None:
    run = Run(tmp_path, task, engine, algorithm)
    before = run.weights.vector.copy()
    for _ in range(3):
        for header in run.round():
            zero, head = header.chunks
            assert (zero.size, zero.count) == (0, BACKBONE)
            assert (head.size, head.count) == (4 * HEAD, HEAD)
    after = run.weights.vector
    assert after[:BACKBONE].tobytes() == before[:BACKBONE].tobytes()
    assert (after[BACKBONE:] != before[BACKBONE:]).mean() > 0.9
    start = len(encode_header(run.weights.layout))
    for old, new in zip(range(3), range(1, 4), strict=True):
        changed = run.models[new].changed
        assert changed is not None
        assert changed[0][0] <= start + 4 * BACKBONE
        assert length(changed) < 4 * HEAD + (16 << 10)
        made = bytearray(run.bytes_of(old))
        for first, last in changed:
            made[first:last] = run.bytes_of(new)[first:last]
        assert bytes(made) == run.bytes_of(new)
    patches = patches_to(run.models[3], run.models[:3])
    assert [patch.base_sha256 for patch in patches] == [
        run.models[version].sha256 for version in (2, 1, 0)
    ]
    assert length(patches[-1].changed) < 0.03 * run.models[3].size_bytes


@pytest.mark.parametrize("engine", ["torch", "numpy"])
def test_training_of_everything_is_sent_whole(engine: str, tmp_path: Path) -> None:
    run = Run(tmp_path, Declared(), engine, FedAvg())
    for header in run.round():
        assert [chunk.count for chunk in header.chunks] == [run.weights.layout.size]
    assert run.models[1].changed is None
    assert patches_to(run.models[1], run.models[:1]) == []


def test_a_negative_zero_in_a_frozen_layer_changes_once_and_is_then_as_all_others(
    tmp_path: Path,
) -> None:
    run = Run(tmp_path, Frozen(), "torch", FedAvg())
    run.weights.vector[5] = -0.0
    data = io.BytesIO()
    write_safetensors(run.weights, data)
    run.store.put(KEYS.version(0), data.getvalue())
    digest = hashlib.sha256(data.getvalue()).hexdigest()
    run.models = [replace(run.models[0], sha256=digest)]
    run.round()
    run.round()
    first, second = run.models[1].changed, run.models[2].changed
    assert first is not None
    assert second is not None
    assert len(first) == len(second) + 1
