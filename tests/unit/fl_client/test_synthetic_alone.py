"""A synthetic user is made without the others, and has the same examples as among them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fl_client.datasets.device import Device
from fl_client.tasks._shared_data import SharedDataTask
from fl_client.tasks.synthetic import MEASURED_USERS, SyntheticUsers


@pytest.mark.parametrize("index", [0, 17, 39])
def test_a_user_alone_has_what_it_has_among_all(index: int):
    device, task = Device("d", index=index, count=40, seed=3), SyntheticUsers()
    assert not task.is_divided(device)
    for alone, dealt in zip(task.data(device), SharedDataTask.data(task, device), strict=True):
        assert alone is not None
        for one, other in zip(alone, dealt, strict=True):
            assert np.array_equal(one, other)


def test_where_users_are_shared_or_dealt_otherwise_all_are_made():
    task = SyntheticUsers()
    few = Device("d", index=0, count=10)
    assert task.is_divided(few)
    assert task.is_divided(replace(few, count=40, partition="iid"))


def test_evaluators_measure_on_a_thousand_users_at_most(monkeypatch: pytest.MonkeyPatch):
    made = []
    user = type(SyntheticUsers.distribution).user

    def noted(self: object, number: int, seed: int) -> object:
        made.append(number)
        inputs, labels = user(self, number, seed)  # type: ignore[arg-type]
        return inputs[:10], labels[:10]

    monkeypatch.setattr(type(SyntheticUsers.distribution), "user", noted)
    train, held_out = SyntheticUsers().data(Device("e", count=100_000, role="evaluator"))
    assert train is None
    assert held_out is not None
    assert made == list(range(MEASURED_USERS))
    assert len(held_out[1]) == MEASURED_USERS
