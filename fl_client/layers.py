"""Declarative models: a list of layers as plain data, which every engine can build.

Weights are named as ``torch.nn.Sequential`` names them: ``0.weight``, ``0.bias``, ``2.weight``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from runtime.errors import ConfigError
from storage.weights import Weights


@dataclass(frozen=True)
class Linear:
    """``y = x W^T + b``.

    Shapes: weight [outputs, inputs], bias [outputs].
    """

    inputs: int
    outputs: int
    bias: bool = True


@dataclass(frozen=True)
class Conv2d:
    """A 2-D cross-correlation over [batch, channels, height, width].

    Shapes: weight [outputs, inputs, kernel, kernel], bias [outputs].
    """

    inputs: int
    outputs: int
    kernel: int
    stride: int = 1
    padding: int = 0
    bias: bool = True


@dataclass(frozen=True)
class MaxPool2d:
    """The maximum of each ``size`` x ``size`` window; windows do not overlap, a rest is dropped."""

    size: int


@dataclass(frozen=True)
class Flatten:
    """Everything but the batch in one axis."""


@dataclass(frozen=True)
class Reshape:
    """Each example in the given shape, for example a flat image as (1, 8, 8)."""

    shape: tuple[int, ...]


@dataclass(frozen=True)
class ReLU:
    """``max(x, 0)``."""


@dataclass(frozen=True)
class Tanh:
    """``tanh(x)``."""


@dataclass(frozen=True)
class Sigmoid:
    """``1 / (1 + exp(-x))``."""


Layer: TypeAlias = Linear | Conv2d | MaxPool2d | Flatten | Reshape | ReLU | Tanh | Sigmoid
Layers: TypeAlias = Sequence[Layer]


def is_declarative(model: object) -> bool:
    """Return whether ``model`` is a list of layers (and not, say, a torch module)."""
    return isinstance(model, list | tuple) and all(isinstance(item, Layer) for item in model)


def weight_shapes(layers: Layers) -> Iterator[tuple[str, tuple[int, ...], int]]:
    """Yield the name, the shape and the fan-in of every weight, in order."""
    for index, layer in enumerate(layers):
        match layer:
            case Linear():
                shape: tuple[int, ...] = (layer.outputs, layer.inputs)
            case Conv2d():
                shape = (layer.outputs, layer.inputs, layer.kernel, layer.kernel)
            case _:
                continue
        if min(shape) < 1:
            raise ConfigError(f"layer {index}, {layer}: sizes must be 1 or more")
        fan_in = math.prod(shape[1:])
        yield f"{index}.weight", shape, fan_in
        if layer.bias:
            yield f"{index}.bias", shape[:1], fan_in


def initial_weights(layers: Layers, seed: int) -> Weights:
    """Return random weights, uniform within ±1/sqrt(fan-in) as torch's layers begin.

    The same ``seed`` gives the same weights on every machine.
    """
    generator = np.random.default_rng(seed)
    arrays = {}
    for name, shape, fan_in in weight_shapes(layers):
        bound = 1.0 / math.sqrt(fan_in)
        arrays[name] = generator.uniform(-bound, bound, shape).astype(np.float32)
    return Weights.from_arrays(arrays)
