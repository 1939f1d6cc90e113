"""What algorithms with a personal model beside the global one have in common."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import algorithms
from algorithms.base import Received
from tests.federation import joined, split
from tests.unit.algorithms.trained import SIZE, clients, trained

BESIDE: list[tuple[str, dict[str, Any]]] = [("ditto", {}), ("apfl", {"alpha": 1.0}), ("pfedme", {})]


@pytest.mark.parametrize(("name", "settings"), BESIDE)
def test_statistics_are_those_of_the_clients_own_data(name: str, settings: dict[str, Any]) -> None:
    # "body" has no gradient here, as running statistics have none
    algorithm, (client,) = algorithms.load(name, settings), clients(1)
    got = Received(split(np.zeros(SIZE)))
    w = split(np.arange(SIZE, dtype=float))
    sent, state = algorithm.finish(w, got, {"own": {"head": np.full(3, 7.0)}}, client)
    assert joined(sent.vectors["update"], SIZE).tolist() == [0, 1, 2, 3, 4, 5]
    later = Received(split(np.full(SIZE, 9.0)))
    found = algorithm.personal(later, state, client)
    assert found is not None
    assert joined(found, SIZE).tolist() == [0, 1, 2, 7, 7, 7]


@pytest.mark.parametrize(("name", "settings"), BESIDE)
def test_without_an_own_model_a_client_predicts_with_the_global_one(
    name: str, settings: dict[str, Any]
) -> None:
    of = clients()
    after = trained(name, settings, of)
    assert after.algorithm.personal(after.received(), {}, of[0]) is None


@pytest.mark.parametrize("name", ["apfl", "ditto", "fedbabu", "fedrod", "finetune", "pfedme"])
def test_a_learning_rate_for_adam_is_warned_of(name: str) -> None:
    algorithm = algorithms.load(name)
    assert "optimizer=sgd" in algorithm.advice({"optimizer": "adam", "learning_rate": 0.001})
    assert algorithm.advice({"optimizer": "sgd", "learning_rate": 0.001}) == ""
    assert algorithm.advice({}) == ""
