"""What one example of a declarative model looks like, found from its layers. Pure."""

from __future__ import annotations

import math

from fl_client.models.layers import (
    GRU,
    LSTM,
    Conv1d,
    Conv2d,
    Embedding,
    Flatten,
    Layer,
    Layers,
    Linear,
    MaxPool2d,
    Reshape,
    Transpose,
)

_LARGEST_SIDE = 1024


def example_shape(model: Layers) -> tuple[int, ...] | None:
    """Return the shape of one example, without the batch; None where the layers leave it open.

    An image is assumed to be square and as small as the layers allow.

    >>> example_shape([Linear(64, 32), Linear(32, 10)])
    (64,)
    >>> example_shape([Conv2d(3, 8, 3), MaxPool2d(2), Flatten(), Linear(8 * 15 * 15, 10)])
    (3, 32, 32)
    """
    first = next((layer for layer in model if _tells(layer)), None)
    match first:
        case Linear():
            return (first.inputs,)
        case Reshape():
            return (math.prod(first.shape),)
        case Conv2d():
            for side in range(1, _LARGEST_SIDE + 1):
                shape = (first.inputs, side, side)
                if _passes(model, shape):
                    return shape
    return None


def _tells(layer: Layer) -> bool:
    """Return whether a layer says how long its input is, or that this is left open."""
    left_open = Embedding | GRU | LSTM | Conv1d | Transpose
    return isinstance(layer, Linear | Conv2d | Reshape | left_open)


def _passes(model: Layers, shape: tuple[int, ...]) -> bool:
    for layer in model:
        match layer:
            case Linear() if shape[-1] != layer.inputs:
                return False
            case Linear():
                shape = (*shape[:-1], layer.outputs)
            case Conv2d() if len(shape) != 3 or shape[0] != layer.inputs:
                return False
            case Conv2d():
                sides = (
                    (side + 2 * layer.padding - layer.kernel) // layer.stride + 1
                    for side in shape[1:]
                )
                shape = (layer.outputs, *sides)
            case MaxPool2d():
                shape = (*shape[:-2], *(side // layer.size for side in shape[-2:]))
            case Flatten():
                shape = (math.prod(shape),)
            case Reshape() if math.prod(shape) != math.prod(layer.shape):
                return False
            case Reshape():
                shape = layer.shape
        if min(shape) < 1:
            return False
    return True
