"""Which devices ``rengo demo`` starts: none that could not do its run."""

from __future__ import annotations

from typing import Any

import pytest

import algorithms
from fl_client.models.layers import Linear
from fl_client.tasks.base import Task
from fl_client.tasks.user_code import TaskError
from rengo.demo import fleet
from rengo.operator.definitions import needs_torch
from runtime.errors import MissingExtra


class Classes(Task):
    def model(self) -> Any:
        return [Linear(2, 2)]


def test_which_tasks_need_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")

    class Module(Task):
        def model(self) -> Any:
            return torch.nn.Linear(2, 2)

    class OwnLoss(Classes):
        def loss(self, outputs: Any, targets: Any) -> Any:
            return outputs.sum()

    class Broken(Task):
        def model(self) -> Any:
            raise ValueError("no model")

    kinds = (Classes, Module, OwnLoss)
    assert [bool(needs_torch(kind(), {})) for kind in kinds] == [False, True, True]
    with pytest.raises(TaskError, match="no model"):
        needs_torch(Broken(), {})
    monkeypatch.setattr("rengo.operator.definitions.available_engines", lambda: ["numpy"])
    assert needs_torch(Classes(), {}) == ""
    with pytest.raises(MissingExtra, match="torch"):
        needs_torch(OwnLoss(), {})


@pytest.mark.parametrize("name", algorithms.names())
def test_an_algorithm_that_changes_the_loss_needs_torch(name: str) -> None:
    pytest.importorskip("torch")
    reason = f"algorithm {name} changes the loss, which only the torch engine can do"
    is_so = "loss" in algorithms.load(name).needs
    assert needs_torch(Classes(), {"algorithm": {"name": name}}) == (reason if is_so else "")


@pytest.mark.parametrize("clients", [1, 2, 6])
@pytest.mark.parametrize("torch_only", [False, True])
def test_no_device_of_a_fleet_gets_what_it_cannot_do(clients: int, torch_only: bool) -> None:
    *trainers, evaluator = fleet(clients, torch_only=torch_only)
    assert [each.index for each in trainers] == list(range(clients))
    assert len({each.name for each in trainers}) == clients
    assert evaluator.role == "evaluator"
    without_torch = [each for each in (*trainers, evaluator) if each.engine == "numpy"]
    assert len(without_torch) == (0 if torch_only else 2)
    assert any(each.profile == "pi" for each in trainers) == (not torch_only)
