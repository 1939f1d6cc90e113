"""Orders to train a part of the model: decided once, stored first, the same after a restart."""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import algorithms
from algorithms.base import DeviceFacts
from broker.wire.messages import DeviceInfo, Order
from fl_client.models.layers import Linear, Tanh, initial_weights
from fl_server.aggregation.aggregator import Refused
from fl_server.dataplane.plane import DataPlane
from fl_server.flows.commands import Command, IssueOrder, StartTask
from fl_server.flows.events import DeviceAnswered, DeviceJoined, ReportedUpdate, TimerFired
from fl_server.kinds.sync import SyncFlow, steps_digest
from fl_server.members.presence import PresenceTable
from fl_server.rounds.commands import FoldUpdate, VerifyUpdate
from fl_server.rounds.evaluation import VersionEvaluation
from fl_server.rounds.events import PartStored
from fl_server.rounds.facts import Fact, RoundAbandoned, RoundStarted, UpdateAccepted
from fl_server.rounds.ledger import Ledger, RoundStep
from fl_server.rounds.machine import RoundMachine
from fl_server.rounds.model import Model, Update
from fl_server.rounds.plan import Plan
from fl_server.rounds.roster import Roster
from fl_server.rounds.workload import FitRule, OrderWork, Speed, with_widths
from fl_server.runs.definition import parse_definition
from fl_server.runs.record import FactRecord, RunRecord
from runtime.security.signing import SecretKey
from storage.registry.registry import ModelRegistry
from storage.store.memory import MemoryStore
from storage.versions.keys import RunKeys
from storage.weights import read_safetensors, write_safetensors
from tests.in_process import InProcessRun
from tests.messages import wire
from tests.narrow import Rows

KEYS = RunKeys("default", "r")
PROFILES = {"pi-1": "pi", "pi-2": "pi", "gpu-1": "gpu"}
WEIGHTS = initial_weights([Linear(4, 8), Tanh(), Linear(8, 3)], 0)


def facts_of(device_id: str) -> DeviceFacts:
    return DeviceFacts(device_id, PROFILES[device_id])


class Life:
    """A flow over a store, from its beginning or from the facts of another."""

    def __init__(self, folder: Path, store: MemoryStore, *facts: Fact) -> None:
        values: dict[str, Any] = {
            "task": "t",
            "algorithm": {"name": "heterofl", "widths": {"pi": 0.25}},
            "cohort": {"size": 3, "quorum": 3},
        }
        definition = parse_definition(values, "test")
        data = io.BytesIO()
        write_safetensors(WEIGHTS, data)
        store.put(KEYS.version(0), data.getvalue())
        digest = hashlib.sha256(data.getvalue()).hexdigest()
        model = Model(0, KEYS.version(0), digest, len(data.getvalue()))
        plan = definition.plan("r", evaluators_online=False)
        registry = ModelRegistry(store, "default", SecretKey("5e" * 32))
        registry.rebuild()
        plane = DataPlane(store, registry, folder, lambda _: None)
        record = RunRecord("r", definition, plan, model, 0.0)
        self.model, self.store = model, store
        self.facts = list(facts)
        self.flow = SyncFlow(record, [FactRecord(fact, 0.0) for fact in facts], plane, facts_of)

    def give(self, event: object) -> list[Command]:
        step = self.flow.handle(event)
        self.facts += step.facts
        return step.commands

    def join_all(self) -> list[Command]:
        return [command for name in PROFILES for command in self.give(DeviceJoined(name))]


def orders(commands: list[Command]) -> dict[str, IssueOrder]:
    return {each.device_id: each for each in commands if isinstance(each, IssueOrder)}


def carry_out(life: Life, commands: list[Command]) -> list[Command]:
    """Do the tasks and return the commands that follow."""
    found = [each.work() for each in commands if isinstance(each, StartTask)]
    return [command for event in found if event is not None for command in life.give(event)]


def test_a_part_is_stored_once_and_ordered_then(tmp_path: Path) -> None:
    life = Life(tmp_path, MemoryStore())
    commands = life.join_all()
    assert orders(commands).keys() == {"gpu-1"}
    assert sum(isinstance(each, StartTask) for each in commands) == 1, "for both of a width"
    [started] = [fact for fact in life.facts if isinstance(fact, RoundStarted)]
    assert started.work == {"pi-1": OrderWork(width=0.25), "pi-2": OrderWork(width=0.25)}
    whole, found = orders(commands)["gpu-1"], orders(carry_out(life, commands))
    assert (whole.width, whole.model and whole.model.key) == (1.0, life.model.key)
    assert found.keys() == {"pi-1", "pi-2"}
    order = found["pi-1"]
    assert (order.width, order.settings.training) == (0.25, {})
    assert order.model == found["pi-2"].model
    assert order.model is not None
    assert order.upload_key == KEYS.update(1, 1, "pi-1")
    with life.store.open(order.model.key) as stream:
        data = stream.read(1 << 20)
    assert (hashlib.sha256(data).hexdigest(), len(data)) == (
        order.model.sha256,
        order.model.size_bytes,
    )
    path = tmp_path / "part"
    path.write_bytes(data)
    arrays, expected = read_safetensors(path).arrays(), WEIGHTS.arrays()
    assert arrays["0.weight"].tolist() == expected["0.weight"][:2].tolist()
    assert arrays["2.weight"].tolist() == expected["2.weight"][:, :2].tolist()
    # once it is known, an order goes out at once
    assert orders(life.give(DeviceJoined("pi-1")))["pi-1"] == order


def test_a_restarted_server_sends_the_same_orders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore()
    first = Life(tmp_path, store)
    before = orders(carry_out(first, first.join_all()))
    # what a device says of itself has changed since, and the round stays what it was
    monkeypatch.setitem(PROFILES, "pi-1", "gpu")
    second = Life(tmp_path / "other", store, *first.facts)
    assert orders(carry_out(second, second.join_all())) == before


def test_parts_are_stored_again_for_the_next_attempt(tmp_path: Path) -> None:
    life = Life(tmp_path, MemoryStore())
    carry_out(life, life.join_all())
    late = PartStored("0" * 64, 0.25, life.model)
    assert life.give(late) == [], "of another version"
    commands = life.give(TimerFired("deadline", 1, 1))
    assert any(isinstance(fact, RoundAbandoned) for fact in life.facts)
    assert "gpu-1" in orders(commands)
    life.store.delete([info.key for info in life.store.list(f"{KEYS.prefix}parts/")])
    found = orders(carry_out(life, commands))
    assert found.keys() == {"pi-1", "pi-2"}
    assert found["pi-1"].attempt == 2
    model = found["pi-1"].model
    assert model is not None
    assert life.store.head(model.key).size == model.size_bytes


def test_an_order_that_is_no_longer_owed_is_not_sent_when_its_part_is_stored(
    tmp_path: Path,
) -> None:
    life = Life(tmp_path, MemoryStore())
    commands = life.join_all()
    update = Update("u", 10, "a" * 64, 5)
    fact = UpdateAccepted(1, 1, "pi-1", update)
    life.flow.machine.ledger.apply(fact)
    assert orders(carry_out(life, commands)).keys() == {"pi-2"}


def test_an_update_is_checked_and_added_as_what_was_ordered(tmp_path: Path) -> None:
    life = Life(tmp_path, MemoryStore())
    carry_out(life, life.join_all())
    machine = life.flow.machine
    reported = ReportedUpdate(KEYS.update(1, 1, "pi-1"), 10, "a" * 64)
    step = machine.handle(
        life.flow._result(DeviceAnswered("pi-1", "train", 1, 1, 5, update=reported))
    )
    [verify] = [each for each in step.commands if isinstance(each, VerifyUpdate)]
    assert verify.width == 0.25
    again = RoundMachine(machine.plan, life.model, life.facts)
    again.ledger.apply(UpdateAccepted(1, 1, "pi-1", verify.update))
    again.ledger.apply(UpdateAccepted(1, 1, "gpu-1", verify.update))
    folds = [each for each in again.resume().commands if isinstance(each, FoldUpdate)]
    assert {each.device_id: each.width for each in folds} == {"pi-1": 0.25, "gpu-1": 1.0}


def test_widths_and_fitted_steps_go_together() -> None:
    fitted = {"pi-1": OrderWork(7, 2), "gpu-1": OrderWork(3)}
    found = with_widths(fitted, {"pi-1": 0.5, "pi-2": 0.25, "gpu-1": 1.0})
    assert found == {
        "pi-1": OrderWork(7, 2, 0.5),
        "pi-2": OrderWork(width=0.25),
        "gpu-1": OrderWork(3),
    }
    assert found["pi-1"].overrides() == {"max_steps": 7, "micro_batch": 2}
    known = {"pi-1": Speed(1.0, 0.0, 10)}
    plan = Plan("r", 1, 1, 1, fit=FitRule(3.0, 100.0, known=known))
    machine = RoundMachine(plan, Model(0, "k", "s", 1), (), lambda *_: 0.5)
    step = machine.handle(DeviceJoined("pi-1"))
    [started] = [fact for fact in step.facts if isinstance(fact, RoundStarted)]
    assert started.work == {"pi-1": OrderWork(3, width=0.5)}


def test_speeds_of_narrow_steps_are_not_those_of_whole_ones() -> None:
    def digest(**algorithm: Any) -> str:
        return steps_digest(parse_definition({"task": "t", "algorithm": algorithm}, "test"))

    plain, narrow = digest(name="fedavg"), digest(name="heterofl", widths={"pi": 0.5})
    assert digest(name="heterofl") == digest(name="fedprox", mu=2.0) == plain
    assert len({plain, narrow, digest(name="heterofl", widths={"pi": 0.25})}) == 3


def test_the_widest_devices_that_are_there_measure() -> None:
    plan = Plan("r", 3, 1, 1, evaluate_on="devices")
    ledger = Ledger(3, Model(1, "k", "s", 1))
    roster = Roster()
    widths = {"pi-1": 0.25, "pi-2": 0.5, "gpu-1": 1.0, "gpu-2": 1.0}
    evaluation = VersionEvaluation(plan, ledger, roster, lambda name, _: widths[name])
    for name, expected in (("pi-1", {"pi-1"}), ("pi-2", {"pi-2"}), ("gpu-1", {"gpu-1"})):
        roster.joined(DeviceJoined(name))
        assert set(evaluation._evaluators()) == expected
    roster.joined(DeviceJoined("gpu-2"))
    step = RoundStep()
    evaluation.begin(step)
    assert step.facts[0].devices == ("gpu-1", "gpu-2")  # type: ignore[union-attr]


def test_what_is_known_of_a_device_is_what_it_says() -> None:
    presence = PresenceTable()
    assert presence.facts_of("d") == DeviceFacts("d")
    info = DeviceInfo(
        role="trainer",
        profile="pi",
        engine="numpy",
        cpus=4,
        ram_bytes=1 << 30,
        accelerators=[],
        versions={},
        tasks=[],
    )
    presence.store_info("d", info)
    assert presence.facts_of("d") == DeviceFacts("d", "pi", 1 << 30)


def test_an_order_to_train_the_whole_is_what_it_was() -> None:
    values = {
        "epoch": 1,
        "action": "train",
        "run_id": "r",
        "round": 1,
        "attempt": 1,
        "task": "t",
        "algorithm": "fedavg",
        "algorithm_settings": {},
        "training": {},
        "seed": 0,
        "model": {"url": "u", "key": "k", "sha256": "0" * 64, "size_bytes": 1, "patches": []},
        "time_left_s": 1.0,
    }
    assert b"width" not in wire(Order.model_validate(values))
    assert b"width" in wire(Order.model_validate({**values, "width": 0.5}))
    for width in (0, -1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="width"):
            Order.model_validate({**values, "width": width})


# --- updates that are not of the part that was ordered --------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> InProcessRun:
    return InProcessRun(tmp_path, Rows(), "heterofl", {"widths": {"d-0": 0.25, "d-1": 0.5}})


@pytest.mark.parametrize("width", [0.5, 1.0])
def test_a_device_has_no_say_in_what_its_update_is_of(run: InProcessRun, width: float) -> None:
    honest = run.train(0)
    run.server.verify(honest, run.models[-1])
    with pytest.raises(Refused, match="base_sha256"):
        run.server.verify(replace(honest, width=width), run.models[-1])


def test_parts_go_with_their_round(run: InProcessRun) -> None:
    def parts() -> list[str]:
        return [info.key for info in run.store.list("") if "/parts/" in info.key]

    submitted = [run.train(index) for index in range(3)]
    first = parts()
    assert len(first) == 2, "one of each width"
    run.server.sweep((0, 1), run.models[0])
    assert parts() == first, "the round goes on"
    run.commit(submitted)
    run.round()
    run.server.sweep((1, 1), run.models[1])
    second = parts()
    assert len(second) == 2
    assert not set(second) & set(first)
    run.server.sweep_run(run.models[2])
    assert parts() == []
    assert not any("part" in path.name or path.suffix == ".tmp" for path in run.folder.rglob("*"))


def test_a_wider_round_after_a_restart_needs_no_stored_part(run: InProcessRun) -> None:
    submitted = [run.train(index) for index in range(3)]
    run.store.delete([info.key for info in run.store.list("") if "/parts/" in info.key])
    run.commit(submitted, restarts=True)
    assert np.isfinite(run.weights.vector).all()
    assert algorithms.load("heterofl", run.settings).narrow_widths == (0.25, 0.5)
