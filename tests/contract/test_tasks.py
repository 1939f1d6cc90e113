"""Every built-in task keeps the laws; loading tells what is wrong in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import algorithms
from fl_client.datasets.device import Device
from fl_client.models.local_round import LocalRound
from fl_client.models.settings import TrainingSettings
from fl_client.tasks.base import Task
from fl_client.tasks.listing import names
from fl_client.tasks.registry import load_task
from fl_client.training.participant import Participant
from runtime.errors import ConfigError, MissingExtra
from tests.support import use_fetched_data

BUILT_IN = names()


def devices(count: int) -> list[Device]:
    return [Device(f"d{index}", index, count) for index in range(count)]


@pytest.fixture(params=BUILT_IN)
def task(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Task:
    use_fetched_data(monkeypatch)
    found = load_task(request.param)
    try:
        found.data(Device("d0"))
    except ConfigError as error:
        pytest.skip(f"its data is not here: {error}")
    return found


def test_its_name_is_that_of_its_file(task: Task) -> None:
    assert task.name in BUILT_IN


def test_its_first_weights_depend_on_the_seed_alone(task: Task) -> None:
    first, again, other = (task.initial_weights(seed) for seed in (1, 1, 2))
    assert first.vector.tobytes() == again.vector.tobytes()
    assert first.layout.hash == other.layout.hash
    assert first.vector.tobytes() != other.vector.tobytes()


@pytest.mark.parametrize("count", [1, 6])
def test_no_example_is_with_two_and_none_of_the_evaluators_is_with_a_trainer(
    task: Task, count: int
) -> None:
    owners: dict[bytes, set[str]] = {}
    total = 0
    for device in [*devices(count), Device("judge", role="evaluator")]:
        for split in task.data(device):
            if split is None:
                continue
            inputs, targets = split
            assert len(inputs) == len(targets) > 0
            total += len(inputs)
            for row in inputs:
                owners.setdefault(row.tobytes(), set()).add(device.id)
    shared = [found for found in owners.values() if len(found) > 1]
    assert not shared
    assert total == len(owners)


def test_an_evaluator_has_held_out_data_alone(task: Task) -> None:
    train, held_out = task.data(Device("judge", role="evaluator"))
    assert train is None
    assert held_out is not None


def test_its_data_is_the_same_again(task: Task) -> None:
    first, again = (task.data(Device("d1", 1, 3))[0] for _ in range(2))
    other = task.data(Device("d1", 1, 3, seed=5))[0]
    assert first is not None and again is not None and other is not None  # noqa: PT018
    assert np.array_equal(first[0], again[0])
    assert first[0].shape != other[0].shape or not np.array_equal(first[0], other[0])


def federated_accuracy(engine: str, seed: int, rounds: int = 15) -> float:
    """Plain FedAvg over six devices, in this process."""
    task, fedavg = load_task("digits"), algorithms.load("fedavg")
    clients = [Participant(task, device, engine) for device in devices(6)]
    judge = Participant(task, Device("judge", role="evaluator"), engine)
    weights = task.initial_weights(seed)
    for number in range(1, rounds + 1):
        updates = [
            client.train(weights, LocalRound(fedavg, task.training, seed, number, client.device.id))
            for client in clients
        ]
        total = sum(update.num_examples for update in updates)
        mean = sum(u.vector.astype(np.float64) * (u.num_examples / total) for u in updates)
        weights = weights.with_vector((weights.vector + mean).astype(np.float32))
    plan = LocalRound(fedavg, task.training, seed, rounds, "judge")
    return judge.evaluate(weights, plan).metrics["accuracy"]


@pytest.mark.parametrize("seed", range(5))
def test_digits_reaches_its_accuracy(seed: int) -> None:
    assert federated_accuracy("numpy", seed) >= 0.94


def test_digits_reaches_it_on_torch_too() -> None:
    assert federated_accuracy("torch", 0) >= 0.94


def test_digits_holds_a_fifth_back_and_gives_nobody_too_little() -> None:
    task = load_task("digits")
    _, held_out = task.data(Device("judge", role="evaluator"))
    assert held_out is not None
    assert len(held_out[0]) == round(1797 / 5)
    sizes = [sum(len(s[0]) for s in task.data(device) if s) for device in devices(40)]
    assert sum(sizes) == 1797 - round(1797 / 5)
    assert min(sizes) >= 10


# --- loading -------------------------------------------------------------------------------------

SOURCE = """
from fl_client.models.layers import Linear
from fl_client.tasks.base import Task
import beside

class HandWriting2(Task):
    def model(self):
        return [Linear(beside.INPUTS, 2)]

class Other(Task):
    name = "my-own"
"""


@pytest.fixture
def own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "beside.py").write_text("INPUTS = 3\n")
    path = tmp_path / "own.py"
    path.write_text(SOURCE)
    return path


def test_a_class_in_a_file_is_loaded_with_the_modules_beside_it(own_file: Path) -> None:
    task = load_task(f"{own_file}:HandWriting2")
    assert task.name == "hand_writing2"
    assert task.initial_weights(0).layout.size == 8
    assert load_task(f"{own_file}:Other").name == "my-own"


def test_a_task_of_an_installed_package_is_listed_and_loaded(
    own_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "shop_tasks-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shop-tasks\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[rengo.tasks]\nshop = own:Other\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "shop" in names()
    assert load_task("shop").name == "my-own"
    sys.modules.pop("own")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("digit", "no task 'digit'; there are: digits"),
        ("base", "no task 'base'"),
        ("os.path", "no task"),
        ("nowhere.py:Task", "there is no file"),
    ],
)
def test_an_unknown_task_is_told_with_the_choices(spec: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_task(spec)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def broken(:\n", r"SyntaxError.*own\.py, line 1"),
        ("import no_such_package\n", "No module named 'no_such_package'"),
        ("class Wrong: pass\n", "the file has: none"),
    ],
)
def test_a_file_that_cannot_be_loaded_is_told(own_file: Path, source: str, said: str) -> None:
    own_file.write_text(source)
    with pytest.raises(ConfigError, match=said):
        load_task(f"{own_file}:Wrong")


def test_a_task_without_model_or_data_is_told() -> None:
    class Empty(Task):
        pass

    with pytest.raises(ConfigError, match=r"task empty does not define model\(\)"):
        Empty().initial_weights(0)
    with pytest.raises(ConfigError, match=r"does not define data"):
        Empty().data(Device("d"))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"lr": 1.0}, "setting lr: .*the settings are: local_epochs, batch_size"),
        ({"local_epochs": 0}, "setting local_epochs"),
        ({"learning_rate": float("nan")}, "setting learning_rate"),
        ({"momentum": 1.0}, "setting momentum"),
        ({"batch_size": "many"}, "setting batch_size"),
    ],
)
def test_wrong_training_settings_are_named(overrides: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        TrainingSettings().overridden(overrides)


def test_training_settings_are_overridden() -> None:
    found = TrainingSettings(momentum=0.5).overridden({"learning_rate": 1, "local_epochs": 3})
    assert (found.momentum, found.learning_rate, found.local_epochs) == (0.5, 1.0, 3)


@pytest.mark.parametrize(("index", "count"), [(2, 2), (-1, 2), (0, 0)])
def test_a_device_outside_its_run_is_refused(index: int, count: int) -> None:
    with pytest.raises(ConfigError, match="index"):
        Device("d", index, count)


def test_without_torch_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "fl_client.engines.torch", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtra, match=r"rengo\[torch\]"):
        Participant(load_task("digits"), Device("d"), "torch").engine  # noqa: B018


def test_what_a_waiting_agent_imports_is_light() -> None:
    code = """
import sys
import fl_client.training.child, fl_client.machine.hardware
import fl_client.tasks.base, fl_client.tasks.listing
fl_client.tasks.listing.names()
fl_client.machine.hardware.describe()
assert not {"numpy", "torch"} & set(sys.modules)
import fl_client.models.layers
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
