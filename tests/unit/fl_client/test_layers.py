"""Declarative models: names, shapes and first weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fl_client.models.layers import Conv2d, Flatten, Linear, ReLU, initial_weights, is_declarative
from runtime.errors import ConfigError

CNN = [Conv2d(1, 4, 3), ReLU(), Flatten(), Linear(144, 10, bias=False)]


def test_weights_are_named_and_shaped_as_torch_has_them() -> None:
    ours = {spec.name: spec.shape for spec in initial_weights(CNN, 0).layout.tensors}
    theirs = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(144, 10, bias=False),
    ).state_dict()
    assert ours == {name: tuple(tensor.shape) for name, tensor in theirs.items()}
    assert list(ours) == list(theirs)


def test_first_weights_depend_on_the_seed_alone() -> None:
    first, again, other = (initial_weights(CNN, seed) for seed in (1, 1, 2))
    assert first.vector.tobytes() == again.vector.tobytes()
    assert not np.array_equal(first.vector, other.vector)


def test_first_weights_have_the_spread_of_torch() -> None:
    weights = initial_weights([Linear(400, 300)], 0).arrays()["0.weight"]
    assert np.abs(weights).max() <= 1 / 20
    # a uniform within ±b has the standard deviation b / sqrt(3)
    assert weights.std() == pytest.approx(1 / 20 / np.sqrt(3), rel=0.02)


def test_only_a_list_of_layers_is_declarative() -> None:
    assert is_declarative(CNN)
    assert not is_declarative(torch.nn.Linear(2, 2))
    assert not is_declarative([Linear(2, 2), torch.nn.ReLU()])


def test_a_layer_without_size_is_refused() -> None:
    with pytest.raises(ConfigError, match="layer 0"):
        initial_weights([Linear(0, 3)], 0)
