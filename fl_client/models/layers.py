"""Declarative models: a list of layers as plain data, which every engine can run.

Weights are named as ``torch.nn.Sequential`` names them: ``0.weight``, ``0.bias``, ``2.weight``.
Windows of sensor data are [batch, channels, time] for convolutions, [batch, time, features] for
a GRU or an LSTM; ``Transpose`` turns one into the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from runtime.errors import ConfigError
from storage.weights import Weights

Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Linear:
    """``y = x W^T + b``, with a ``rank`` plus ``x A^T B^T``: a low-rank adapter, B zeros at first.

    Source of the adapter: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR
    2022, equation 3 with ``alpha = r``, https://arxiv.org/abs/2106.09685.

    Shapes: weight [outputs, inputs], bias [outputs], lora_a [rank, inputs], lora_b [outputs, rank].
    """

    inputs: int
    outputs: int
    bias: bool = True
    rank: int = 0


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
class Conv1d:
    """A 1-D cross-correlation over [batch, channels, time].

    Shapes: weight [outputs, inputs, kernel], bias [outputs].
    """

    inputs: int
    outputs: int
    kernel: int
    stride: int = 1
    padding: int = 0
    bias: bool = True


@dataclass(frozen=True)
class MaxPool1d:
    """The maximum of each window of ``size``; windows do not overlap, a remainder is dropped."""

    size: int


@dataclass(frozen=True)
class MaxPool2d:
    """The maximum of each ``size`` x ``size`` window, as ``MaxPool1d`` has it."""

    size: int


@dataclass(frozen=True)
class AvgPool1d:
    """The mean of each window of ``size``; windows do not overlap, a remainder is dropped."""

    size: int


@dataclass(frozen=True)
class AvgPool2d:
    """The mean of each ``size`` x ``size`` window, as ``AvgPool1d`` has it."""

    size: int


@dataclass(frozen=True)
class GlobalAvgPool:
    """The mean of each channel: [batch, channels, ...] becomes [batch, channels]."""


@dataclass(frozen=True)
class BatchNorm:
    """Each channel (axis 1) with mean 0 and variance 1 over the batch, then scaled and shifted.

    The running statistics, which evaluation uses, are not trained but are part of the weights:
    a device sends their change, and the global ones are the weighted mean over the devices like
    every weight. For a batch with one value a channel, which has no variance, the running
    statistics are used instead.

    Shapes: weight, bias, running_mean and running_var [features].
    """

    features: int
    momentum: float = 0.1
    epsilon: float = 1e-5


@dataclass(frozen=True)
class LayerNorm:
    """The last axes, of the given ``shape``, with mean 0 and variance 1, then scaled and shifted.

    Shapes: weight and bias [*shape].
    """

    shape: Shape
    epsilon: float = 1e-5


@dataclass(frozen=True)
class GRU:
    """A gated recurrent unit over [batch, time, inputs], its gates in torch's order r, z, n.

    It returns the last hidden state [batch, hidden], or with ``sequence`` all of them.

    Shapes: weight_ih_l0 [3 hidden, inputs], weight_hh_l0 [3 hidden, hidden], both biases
    [3 hidden].
    """

    inputs: int
    hidden: int
    sequence: bool = False


@dataclass(frozen=True)
class LSTM:
    """A long short-term memory over [batch, time, inputs], its gates in torch's order i, f, g, o.

    It returns the last hidden state [batch, hidden], or with ``sequence`` all of them.

    Shapes: weight_ih_l0 [4 hidden, inputs], weight_hh_l0 [4 hidden, hidden], both biases
    [4 hidden].
    """

    inputs: int
    hidden: int
    sequence: bool = False


@dataclass(frozen=True)
class Embedding:
    """A vector for each number from 0 to ``count - 1``: [batch, ...] becomes [batch, ..., size].

    It is a model's first layer: numbers of characters or words have no gradient.

    Shapes: weight [count, size].
    """

    count: int
    size: int


@dataclass(frozen=True)
class Dropout:
    """Each value 0 with probability ``rate`` in training, the others scaled up by 1 / (1 - rate).

    Which ones depends on the round's seed and is the same in every engine.
    """

    rate: float


@dataclass(frozen=True)
class Transpose:
    """[batch, a, b] becomes [batch, b, a]: from channels first to time first, and back."""


@dataclass(frozen=True)
class Flatten:
    """All axes but the batch become one."""


@dataclass(frozen=True)
class Reshape:
    """Each example gets the given shape, for example a flat image (1, 8, 8)."""

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


Layer: TypeAlias = (
    Linear
    | Conv1d
    | Conv2d
    | MaxPool1d
    | MaxPool2d
    | AvgPool1d
    | AvgPool2d
    | GlobalAvgPool
    | BatchNorm
    | LayerNorm
    | GRU
    | LSTM
    | Embedding
    | Dropout
    | Flatten
    | Reshape
    | Transpose
    | ReLU
    | Tanh
    | Sigmoid
)
Layers: TypeAlias = Sequence[Layer]


@dataclass(frozen=True)
class LayerTensor:
    """One tensor of a layer.

    Attributes:
        part: its name within the layer.
        role: a weight is trained, a statistic is in the same vector but not trained, and a count
            is an integer that does not change.
        bound: initial values are uniform within ± this, or ``start`` where it is 0.
    """

    part: str
    shape: Shape
    role: Literal["weight", "statistic", "count"] = "weight"
    bound: float = 0.0
    start: float = 0.0


def is_declarative(model: object) -> bool:
    """Return whether ``model`` is a list of layers (and not, say, a torch module)."""
    return isinstance(model, list | tuple) and all(isinstance(item, Layer) for item in model)


def tensors(layers: Layers) -> dict[str, LayerTensor]:
    """Return every tensor of the model by its full name, in the order of torch's state_dict.

    Raises:
        ConfigError: a layer's sizes are not possible; the text says which layer.
    """
    found = {}
    for index, layer in enumerate(layers):
        _check(index, layer)
        for tensor in _tensors_of(layer):
            found[f"{index}.{tensor.part}"] = tensor
    return found


def initial_weights(layers: Layers, seed: int) -> Weights:
    """Return initial weights as torch's layers have them: within ±1/sqrt(fan-in), norms at 1.

    The same ``seed`` gives the same weights on every machine.
    """
    generator = np.random.default_rng(seed)
    arrays = {}
    for name, tensor in tensors(layers).items():
        if tensor.role == "count":
            arrays[name] = np.zeros(tensor.shape, np.int64)
        elif tensor.bound:
            drawn = generator.uniform(-tensor.bound, tensor.bound, tensor.shape)
            arrays[name] = drawn.astype(np.float32)
        else:
            arrays[name] = np.full(tensor.shape, tensor.start, np.float32)
    return Weights.from_arrays(arrays)


def _check(index: int, layer: Layer) -> None:
    sizes: Mapping[str, object] = vars(layer)
    for name, value in sizes.items():
        lowest = 0 if name in {"padding", "rank"} else 1
        whole = value if isinstance(value, tuple) else (value,)
        if any(type(size) is int and size < lowest for size in whole):
            raise ConfigError(f"layer {index}, {layer}: sizes must be {lowest} or more")
    if isinstance(layer, Embedding) and index:
        raise ConfigError(f"layer {index}, {layer}: an embedding is the first layer, or none")
    if isinstance(layer, Dropout) and not 0 <= layer.rate < 1:
        raise ConfigError(f"layer {index}, {layer}: the rate must be 0 or more and below 1")


def _tensors_of(layer: Layer) -> Iterator[LayerTensor]:
    match layer:
        case Linear():
            yield from _affine((layer.outputs, layer.inputs), layer.bias)
            if layer.rank:
                bound = 1.0 / math.sqrt(layer.inputs)
                yield LayerTensor("lora_a", (layer.rank, layer.inputs), bound=bound)
                yield LayerTensor("lora_b", (layer.outputs, layer.rank))
        case Conv1d():
            yield from _affine((layer.outputs, layer.inputs, layer.kernel), layer.bias)
        case Conv2d():
            side = layer.kernel
            yield from _affine((layer.outputs, layer.inputs, side, side), layer.bias)
        case BatchNorm():
            yield LayerTensor("weight", (layer.features,), start=1.0)
            yield LayerTensor("bias", (layer.features,))
            yield LayerTensor("running_mean", (layer.features,), "statistic")
            yield LayerTensor("running_var", (layer.features,), "statistic", start=1.0)
            # not used here, but torch's module has it, and the names are torch's
            yield LayerTensor("num_batches_tracked", (), "count")
        case LayerNorm():
            yield LayerTensor("weight", layer.shape, start=1.0)
            yield LayerTensor("bias", layer.shape)
        case Embedding():
            # of variance 1, as torch has them
            yield LayerTensor("weight", (layer.count, layer.size), bound=math.sqrt(3))
        case GRU() | LSTM():
            gates = (3 if isinstance(layer, GRU) else 4) * layer.hidden
            bound = 1.0 / math.sqrt(layer.hidden)
            yield LayerTensor("weight_ih_l0", (gates, layer.inputs), bound=bound)
            yield LayerTensor("weight_hh_l0", (gates, layer.hidden), bound=bound)
            yield LayerTensor("bias_ih_l0", (gates,), bound=bound)
            yield LayerTensor("bias_hh_l0", (gates,), bound=bound)


def _affine(shape: Shape, bias: bool) -> Iterator[LayerTensor]:
    bound = 1.0 / math.sqrt(math.prod(shape[1:]))
    yield LayerTensor("weight", shape, bound=bound)
    if bias:
        yield LayerTensor("bias", shape[:1], bound=bound)
