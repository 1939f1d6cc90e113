"""Declared layers compute the same in the order and the memory format that is faster."""

from __future__ import annotations

import pytest
import torch

from fl_client.models.layers import Conv1d as Conv
from fl_client.models.layers import Conv2d, Flatten, Layers, Linear, MaxPool1d, MaxPool2d, ReLU
from fl_client.torch_models.layers import declared_module

IMAGES: Layers = [Conv2d(2, 3, 3), ReLU(), MaxPool2d(2), Flatten(), ReLU(), Linear(27, 2)]
WAVES: Layers = [Conv(2, 3, 3), ReLU(), MaxPool1d(2), ReLU(), MaxPool1d(2), Flatten(), Linear(6, 2)]


def as_declared(layers: Layers) -> torch.nn.Sequential:
    made = {
        Conv2d: lambda each: torch.nn.Conv2d(each.inputs, each.outputs, each.kernel),
        Conv: lambda each: torch.nn.Conv1d(each.inputs, each.outputs, each.kernel),
        ReLU: lambda each: torch.nn.ReLU(),
        MaxPool1d: lambda each: torch.nn.MaxPool1d(each.size),
        MaxPool2d: lambda each: torch.nn.MaxPool2d(each.size),
        Flatten: lambda each: torch.nn.Flatten(),
        Linear: lambda each: torch.nn.Linear(each.inputs, each.outputs),
    }
    return torch.nn.Sequential(*(made[type(each)](each) for each in layers))


@pytest.mark.parametrize(
    ("layers", "shape"), [(IMAGES, (8, 2, 8, 8)), (WAVES, (8, 2, 10))], ids=["images", "waves"]
)
def test_pooling_comes_first_and_changes_nothing(layers: Layers, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    fast, plain = declared_module(layers).double(), as_declared(layers).double()
    kinds = [type(each).__name__ for each in fast.children()]
    assert kinds[1:3] == [type(layers[2]).__name__, "ReLU"]
    assert list(fast.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(fast.state_dict())
    inputs = torch.randn(shape, dtype=torch.float64)
    # windows of equal values, and windows without a positive one
    inputs[0], inputs[1] = 0, -1
    for parameter in (*fast.parameters(), *plain.parameters()):
        assert parameter.dtype == torch.float64
    outputs = [model(inputs) for model in (fast, plain)]
    torch.testing.assert_close(*outputs, rtol=1e-12, atol=1e-12)
    grads = [
        torch.autograd.grad(each.square().sum(), list(model.parameters()))
        for each, model in zip(outputs, (fast, plain), strict=True)
    ]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_images_have_their_channels_last_in_memory() -> None:
    weight = declared_module(IMAGES).state_dict()["0.weight"]
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert declared_module(WAVES).state_dict()["0.weight"].is_contiguous()
