"""The data plane's shell on the memory store: when the store is swept."""

from __future__ import annotations

import hashlib
import io
import queue
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from fl_server.dataplane import plane as data_module
from fl_server.dataplane.plane import DataPlane
from fl_server.dataplane.workers import Done
from fl_server.rounds.commands import SweepRound, SweepRun
from fl_server.rounds.model import Model
from fl_server.runs.definition import parse_definition
from fl_server.runs.record import RunRecord
from runtime.security.signing import SecretKey
from storage.registry.registry import ModelRegistry
from storage.store.memory import MemoryStore

RUN = "r-1"


class Plane:
    """A data plane with one run, a clock that is set by hand, and what lies in the store."""

    def __init__(self, folder: Path) -> None:
        self.store, self.now_s = MemoryStore(), 100.0
        self.ended: queue.SimpleQueue[Done] = queue.SimpleQueue()
        registry = ModelRegistry(self.store, "default", SecretKey("5e" * 32))
        self.data = DataPlane(self.store, registry, folder, self.ended.put)
        self.keys = self.data.keys(RUN)
        self.model = Model(0, self.keys.version(0), hashlib.sha256(b"1234").hexdigest(), 4)
        definition = parse_definition({"task": "digits", "cohort": {"size": 1}}, "definition")
        plan = definition.plan(RUN, evaluators_online=False, speeds={})
        registry.rebuild()
        self.data.open_run(RunRecord(RUN, definition, plan, self.model, 0.0))
        self.store.put(self.model.key, io.BytesIO(b"1234"), 4)

    def sweep(self, round_number: int) -> None:
        """Leave an update of the round, and let the round be swept."""
        self.store.put(self.update(round_number), io.BytesIO(b"u"), 1)
        self.carry_out(SweepRound(round_number, 1))

    def carry_out(self, command: SweepRound | SweepRun) -> None:
        assert self.data.perform(RUN, command, self.model) is None

    def update(self, round_number: int) -> str:
        return self.keys.update(round_number, 1, "d-1")

    def there(self) -> list[str]:
        return sorted(info.key for info in self.store.list(""))


@pytest.fixture
def plane(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Plane]:
    found = Plane(tmp_path)
    clock = SimpleNamespace(monotonic=lambda: found.now_s)
    monkeypatch.setattr(data_module, "time", clock)
    yield found
    found.data.stop()


def test_short_rounds_share_a_sweep(plane: Plane) -> None:
    plane.sweep(1)
    assert plane.there() == [plane.model.key]
    plane.now_s += 1.0
    plane.sweep(2)
    plane.now_s += 0.9
    plane.sweep(3)
    assert plane.there() == sorted([plane.model.key, plane.update(2), plane.update(3)])
    plane.now_s += 0.1
    plane.sweep(4)
    assert plane.there() == [plane.model.key]


def test_a_run_s_end_leaves_nothing_of_its_last_short_round(plane: Plane) -> None:
    plane.sweep(1)
    plane.sweep(2)
    plane.carry_out(SweepRun())
    assert plane.there() == [plane.model.key]
