"""What algorithms with a model for each cluster have in common."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import algorithms
from algorithms.base import Received
from tests.federation import Quadratic


class Named(Quadratic):
    """A loss of the weight "body" alone, ``1/2 |body|^2``."""

    def loss(self, w: Any) -> float:
        return float(0.5 * (w["body"] ** 2).sum())


@pytest.mark.parametrize("name", ["cfl", "ifca"])
def test_what_did_not_change_is_not_sent_even_where_it_is_infinite(name: str) -> None:
    # the difference of an attention mask's infinite values is NaN
    algorithm = algorithms.load(name, {"clusters": 2})
    weights = {
        "mask": np.array([0.0, -np.inf]),
        "body": np.array([1.0, 2.0, 3.0]),
        "bias": np.array([4.0]),
    }
    vectors = dict.fromkeys(algorithm.sends, weights)
    signs = {
        "mask": np.array([1.0, -1.0]),
        "body": np.array([1.0, 1.0, -1.0]),
        "bias": np.array([1.0]),
    }
    got, local = Received(weights, {**vectors, "signs": signs}), Named(np.ones(6), np.zeros(6))
    w, state = algorithm.start(got, {}, local)
    after = {**w, "body": np.array([2.0, 2.0, 5.0]), "bias": np.array([7.0])}
    sent, _ = algorithm.finish(after, got, state, local)
    assert {each: array.tolist() for each, array in sent.vectors["model_0"].items()} == {
        "body": [1.0, 0.0, 2.0],
        "bias": [3.0],
    }
    assert np.isfinite(list(sent.scalars.values())).all()
    if name == "cfl":
        # the mask's two places count, so that all clients' sketches are of the same projection
        found = [sent.scalars[f"sketch_{at}"] for at in range(7)]
        assert found == [0.0, 0.0, 1.0, 0.0, -2.0, 3.0, 0.0]
