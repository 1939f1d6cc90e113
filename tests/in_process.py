"""A run in one process, with everything but the network: for laws of algorithms.

Devices do their jobs as the training process does them, with files; the server's byte work is the
product's own, on a store in memory.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import algorithms
from algorithms.base import DeviceFacts
from algorithms.transforms import load_all
from fl_client.datasets.device import Device
from fl_client.models.local_round import LocalRound
from fl_client.tasks.base import Task
from fl_client.training.frames import Done, TrainingJob
from fl_client.training.participant import Participant
from fl_client.training.work import perform
from fl_server.aggregation.aggregator import AggregatedRun, RunAggregator, SubmittedUpdate
from fl_server.aggregation.model_cache import ModelCache
from fl_server.aggregation.rules import RULES
from fl_server.aggregation.spool import MemoryBudget
from fl_server.rounds.model import Model, Update
from storage.store.memory import MemoryStore
from storage.versions.keys import RunKeys
from storage.weights import Weights, read_safetensors, write_safetensors

KEYS = RunKeys("p", "run")


class KeepAll:
    """Every version is retained."""

    def retained(self, latest: int) -> Collection[int]:
        return range(latest + 1)

    def forget_others(self, retained: Collection[int]) -> None:
        del retained

    def unchanged(self) -> AbstractContextManager[None]:
        return nullcontext()


class InProcessRun:
    """One run of one algorithm on a few devices.

    Args:
        engines: of each device; there are as many devices.
    """

    def __init__(
        self,
        folder: Path,
        task: Task,
        algorithm: str,
        settings: Mapping[str, Any] | None = None,
        *,
        engines: Sequence[str] = ("numpy", "numpy", "numpy"),
        training: Mapping[str, Any] | None = None,
        seed: int = 0,
        rule: str = "mean",
        transforms: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.folder, self.seed, self.rule = folder, seed, rule
        self.transforms = [dict(each) for each in transforms]
        self.algorithm, self.settings = algorithm, dict(settings or {})
        self.training = dict(training or {})
        self.devices = [
            Participant(task, Device(f"d-{index}", index=index, count=len(engines)), engine)
            for index, engine in enumerate(engines)
        ]
        self.store = MemoryStore()
        data = io.BytesIO()
        write_safetensors(task.initial_weights(seed), data)
        self.store.put(KEYS.version(0), data.getvalue())
        digest = hashlib.sha256(data.getvalue()).hexdigest()
        self.models = [Model(0, KEYS.version(0), digest, len(data.getvalue()))]
        self._lives = 0
        self.restart()

    def restart(self) -> None:
        """Forget all that a server's process holds."""
        self._lives += 1
        algorithm = algorithms.load(self.algorithm, self.settings)
        copies = ModelCache(self.folder / f"server-{self._lives}", self.store)
        self.server = RunAggregator(
            AggregatedRun(
                KEYS,
                algorithm,
                self.seed,
                len(self.devices),
                RULES.load(self.rule),
                load_all(self.transforms),
            ),
            KeepAll(),
            self.store,
            copies,
            MemoryBudget(1 << 30),
        )

    @property
    def weights(self) -> Weights:
        """The latest version."""
        return read_safetensors(self._file("model", self.models[-1].key))

    def width(self, index: int, number: int) -> float:
        """Return how much of the model a device trains in a round."""
        device = self.devices[index].device
        facts = DeviceFacts(device.id, device.profile)
        return algorithms.load(self.algorithm, self.settings).width(facts, number, self.seed)

    def weights_of(self, index: int) -> Weights:
        """Return what a device trains in the next round: the latest version, or its part."""
        return read_safetensors(Path(str(self.job(index, "train", len(self.models)).model_path)))

    def job(self, index: int, action: str, number: int) -> TrainingJob:
        """Return an order for a device as its agent hands it to the training process."""
        model, state = self.models[-1], self.folder / f"state-{index}.safetensors"
        algorithm = algorithms.load(self.algorithm, self.settings)
        width = self.width(index, number) if action == "train" else 1.0
        file = self.server.store_part(model, width)
        vectors = model.state if algorithm.broadcasts else None
        return TrainingJob(
            action=action,  # type: ignore[arg-type]
            run_id=KEYS.run_id,
            round=number,
            attempt=1,
            device_id=self.devices[index].device.id,
            algorithm=self.algorithm,
            algorithm_settings=self.settings,
            training=self.training,
            seed=self.seed,
            width=width,
            transforms=self.transforms,
            model_path=str(self._file("model", file.key)),
            base_sha256=file.sha256,
            update_path=str(self.folder / f"update-{index}"),
            state_path=str(state),
            vectors_path=None if vectors is None else str(self._file("vectors", vectors.key)),
            scalars={n: value for n, value in model.scalars if n in algorithm.broadcasts},
        )

    def plan(self, index: int) -> LocalRound:
        """Return what a device's training of the next round depends on."""
        job = self.job(index, "train", len(self.models))
        state, vectors = Path(str(job.state_path)), job.vectors_path
        return LocalRound(
            algorithms.load(self.algorithm, self.settings),
            self.devices[index].task.training.overridden(self.training),
            self.seed,
            job.round,
            job.device_id,
            read_safetensors(state).arrays() if state.exists() else {},
            {} if vectors is None else dict(read_safetensors(Path(vectors)).arrays()),
            job.scalars,
            width=job.width,
            transforms=load_all(self.transforms),
        )

    def train(self, index: int) -> SubmittedUpdate:
        """Train a device, keep its state, and put its update into the store."""
        number = len(self.models)
        job = self.job(index, "train", number)
        done = perform(self.devices[index], job)
        assert job.update_path is not None
        assert job.state_path is not None
        written = Path(f"{job.state_path}.next")
        if written.exists():
            written.replace(job.state_path)
        name, data = job.device_id, Path(job.update_path).read_bytes()
        key = KEYS.update(number, 1, name)
        self.store.put(key, data)
        update = Update(key, len(data), str(done.header_sha256), done.num_examples)
        return SubmittedUpdate(name, number, 1, update, job.width)

    def round(self, taking_part: Sequence[int] | None = None, *, restarts: bool = False) -> None:
        """Train some devices, in this order, and make the next version."""
        indices = range(len(self.devices)) if taking_part is None else taking_part
        self.commit([self.train(index) for index in indices], restarts=restarts)

    def commit(self, submitted: Sequence[SubmittedUpdate], *, restarts: bool = False) -> None:
        """Fold updates in this order and make the next version; twice if the server restarts."""
        base = self.models[-1]
        for _ in range(1 + restarts):
            if restarts:
                self.restart()
            for each in submitted:
                self.server.verify(each, base)
                self.server.fold(each, base)
        included = tuple(sorted(each.device_id for each in submitted))
        key = (submitted[0].round, 1)
        self.models.append(self.server.aggregate(key, included, base, len(self.devices)))
        self.server.forget(key)

    def evaluate(self, index: int) -> Done:
        """Return a device's measurement of the latest version."""
        return perform(self.devices[index], self.job(index, "evaluate", len(self.models) - 1))

    def _file(self, name: str, key: str) -> Path:
        path = self.folder / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:8]}.safetensors"
        with self.store.open(key) as stream:
            path.write_bytes(stream.read(1 << 30))
        return path
