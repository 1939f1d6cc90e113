"""The operations of a model, worked out by hand."""

from __future__ import annotations

import pytest

from fl_client.models.layers import GRU, Conv1d, Conv2d, Flatten, Linear, MaxPool2d, ReLU
from rengo.simulation.virtual.flops import forward_flops


def test_dense_layers_by_hand():
    model = [Linear(784, 200), ReLU(), Linear(200, 10)]
    assert forward_flops(model, (784,)) == 2 * 784 * 200 + 200 + 2 * 200 * 10


def test_convolutions_by_hand():
    # 28 -> 24 -> 12; 8 * 24 * 24 outputs of 25 products each
    model = [Conv2d(1, 8, 5), MaxPool2d(2), Flatten(), Linear(8 * 144, 10)]
    by_hand = 2 * 25 * 8 * 576 + 8 * 576 + 8 * 144 + 2 * 8 * 144 * 10
    assert forward_flops(model, (1, 28, 28)) == by_hand


def test_windows_by_hand():
    assert forward_flops([Conv1d(6, 4, 3)], (6, 50)) == 2 * 6 * 3 * 4 * 48
    # three gates of 16, over 50 steps
    assert forward_flops([GRU(6, 16)], (50, 6)) == pytest.approx(2 * 3 * 16 * 22 * 50)
