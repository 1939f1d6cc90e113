"""How much memory training needs on the numpy engine, computed from the list of layers.

An upper bound, not an estimate: it counts what the engine stores for the backward pass, what a
layer needs in addition, the gradients, the optimiser and the copies of the model. What the process
holds before it trains (the interpreter, the data, the global model) is not included.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fl_client.models import layers
from fl_client.models.layers import Layers, Shape
from fl_client.models.settings import TrainingSettings
from runtime.errors import ConfigError

PATCH_BYTES = 256 * 1024
"""A convolution copies patches of up to this size at a time, or of one example if larger."""

EVALUATION_BYTES = 1 << 20
"""An evaluation computes as many examples at a time as fit into this, and at least one."""

_RUNTIME_BYTES = 3 << 20
"""Packing buffers of the matrix products, and memory that the allocator does not return."""


@dataclass(frozen=True)
class LayerCost:
    """The bytes that one layer needs in a pass.

    Attributes:
        output: the shape of one example's output.
        kept: for one example, from its forward to its backward pass.
        beside: for one example, only during the layer's own forward or backward pass.
        once: whatever the batch.
    """

    output: Shape
    kept: int = 0
    beside: int = 0
    once: int = 0


def memory_needed(
    model: Layers, batch: int, shape: Shape, settings: TrainingSettings, itemsize: int = 4
) -> int:
    """Return the most bytes that a round of training adds to a process.

    Args:
        batch: the examples in memory at once: the micro batch if there is one.
        shape: of one example's input.

    Raises:
        ConfigError: a layer does not accept the output of the one before it.
    """
    costs = layer_costs(model, shape, itemsize)
    kept = math.prod(shape) * itemsize
    example = 0
    for cost in costs:
        # in the backward pass, what later layers stored is already freed
        kept += cost.kept
        example = max(example, kept + cost.beside)
    # the loss needs a few arrays of the outputs' size, the targets among them
    outputs = math.prod(costs[-1].output if costs else shape)
    example = max(example, kept + 5 * outputs * max(itemsize, 8))
    once = max([0, *(cost.once for cost in costs)])
    training = _model_bytes(model, settings, itemsize, accumulates=batch < settings.batch_size)
    evaluation = max(EVALUATION_BYTES, _evaluated_bytes(costs, shape, itemsize))
    return batch * example + once + training + evaluation + _RUNTIME_BYTES


def largest_micro_batch(
    limit_bytes: int, model: Layers, shape: Shape, settings: TrainingSettings, itemsize: int = 4
) -> int | None:
    """Return the largest micro batch, at most the batch, with which ``limit_bytes`` are enough.

    None when even one example needs more.
    """
    largest = min(settings.batch_size, settings.micro_batch or settings.batch_size)
    if memory_needed(model, largest, shape, settings, itemsize) <= limit_bytes:
        return largest
    low, high = 0, largest
    while high - low > 1:
        middle = (low + high) // 2
        if memory_needed(model, middle, shape, settings, itemsize) <= limit_bytes:
            low = middle
        else:
            high = middle
    return low or None


def evaluation_batch(model: Layers, shape: Shape, itemsize: int = 4) -> int:
    """Return how many examples an evaluation computes at a time; it depends on the model alone."""
    costs = layer_costs(model, shape, itemsize)
    return min(256, max(1, EVALUATION_BYTES // _evaluated_bytes(costs, shape, itemsize)))


def _evaluated_bytes(costs: Sequence[LayerCost], shape: Shape, itemsize: int) -> int:
    """Return the bytes that the evaluation of one example needs."""
    # what a layer stored is freed when the next has run
    pairs = zip([LayerCost(shape), *costs], costs, strict=False)
    most = max((before.kept + cost.kept + cost.beside for before, cost in pairs), default=0)
    return most + math.prod(shape) * itemsize


def layer_costs(model: Layers, shape: Shape, itemsize: int = 4) -> list[LayerCost]:
    """Return the cost of every layer for examples of ``shape``."""
    costs = []
    for index, layer in enumerate(model):
        try:
            cost = _cost(layer, shape, itemsize)
            if index and overwrites(layer, model[index - 1]):
                cost = replace(cost, kept=0)
        except (ValueError, IndexError, ZeroDivisionError) as error:
            raise ConfigError(f"layer {index}, {layer}: takes no input of shape {shape}") from error
        if any(side < 1 for side in cost.output):
            raise ConfigError(f"layer {index}, {layer}: nothing is left of an input of {shape}")
        costs.append(cost)
        shape = cost.output
    return costs


def overwrites(layer: layers.Layer, before: layers.Layer) -> bool:
    """Return whether ``layer`` writes its output over its input.

    The layer before it must have created that input, and must not need it in its backward pass.
    """
    creators = (
        layers.Linear
        | layers.Conv1d
        | layers.Conv2d
        | layers.BatchNorm
        | layers.LayerNorm
        | layers.MaxPool1d
        | layers.MaxPool2d
        | layers.AvgPool1d
        | layers.AvgPool2d
    )
    return isinstance(layer, layers.ReLU | layers.Tanh) and isinstance(before, creators)


def _model_bytes(
    model: Layers, settings: TrainingSettings, itemsize: int, *, accumulates: bool
) -> int:
    sizes = [math.prod(tensor.shape) for tensor in layers.tensors(model).values()]
    copies = 3  # the weights, the gradients, and the algorithm's version of the gradients
    copies += {"sgd": int(settings.momentum > 0), "adam": 2}[settings.optimizer]
    copies += accumulates
    # a step's direction and its terms, for one tensor at a time
    terms = 4 + (settings.weight_decay > 0)
    return (copies * sum(sizes) + terms * max(sizes, default=0)) * itemsize


def _cost(layer: layers.Layer, shape: Shape, itemsize: int) -> LayerCost:
    if not _takes(layer, shape):
        raise ValueError
    size = math.prod(shape) * itemsize
    match layer:
        case layers.Linear():
            output = (*shape[:-1], layer.outputs)
            result = math.prod(output) * itemsize
            inner = math.prod(shape[:-1]) * layer.rank * itemsize
            # an adapter's product comes beside the output, and its gradient beside the input's
            beside = inner + max(size, result) if layer.rank else 0
            return LayerCost(output, result + inner, size + result + beside)
        case layers.Conv1d() | layers.Conv2d():
            return _convolution(layer, shape, itemsize)
        case layers.BatchNorm() | layers.LayerNorm():
            return LayerCost(shape, 2 * size, 3 * size)
        case layers.GRU() | layers.LSTM():
            return _recurrent(layer, shape, itemsize)
        case layers.Embedding():
            output = (*shape, layer.size)
            result = math.prod(output) * itemsize
            # the numbers as indices
            return LayerCost(output, result + math.prod(shape) * 8, size + 2 * result)
        case layers.Dropout():
            return LayerCost(shape, size + size // itemsize, 2 * size + math.prod(shape) * 4)
        case layers.ReLU() | layers.Tanh() | layers.Sigmoid():
            beside = {"ReLU": 2, "Tanh": 4, "Sigmoid": 5}[type(layer).__name__]
            return LayerCost(shape, size, beside * size)
    return _reshaping_cost(layer, shape, itemsize)


def _takes(layer: layers.Layer, shape: Shape) -> bool:
    """Return whether a layer with weights was declared for examples of ``shape``."""
    match layer:
        case layers.Linear():
            return shape[-1] == layer.inputs
        case layers.Conv1d():
            return len(shape) == 2 and shape[0] == layer.inputs
        case layers.Conv2d():
            return len(shape) == 3 and shape[0] == layer.inputs
        case layers.BatchNorm():
            return shape[0] == layer.features
        case layers.LayerNorm():
            return shape[-len(layer.shape) :] == layer.shape
        case layers.GRU() | layers.LSTM():
            return len(shape) == 2 and shape[1] == layer.inputs
    return True


def _reshaping_cost(layer: layers.Layer, shape: Shape, itemsize: int) -> LayerCost:
    """Return the cost of a layer without weights whose output has another shape."""
    size = math.prod(shape) * itemsize
    match layer:
        case layers.Flatten():
            return LayerCost((math.prod(shape),), 0, 2 * size)
        case layers.Reshape():
            if math.prod(layer.shape) != math.prod(shape):
                raise ValueError
            return LayerCost(layer.shape, 0, 2 * size)
        case layers.Transpose():
            first, second = shape
            return LayerCost((second, first), 0, 2 * size)
        case layers.GlobalAvgPool():
            return LayerCost(shape[:1], shape[0] * itemsize, 2 * size)
        case layers.MaxPool1d() | layers.MaxPool2d() | layers.AvgPool1d() | layers.AvgPool2d():
            output = (shape[0], *(side // layer.size for side in shape[1:]))
            result = math.prod(output) * itemsize
            return LayerCost(output, 2 * result, size + 3 * result)
    raise ConfigError(f"nothing is known of the memory that {layer!r} takes")


def _convolution(layer: layers.Conv1d | layers.Conv2d, shape: Shape, itemsize: int) -> LayerCost:
    padded = [side + 2 * layer.padding for side in shape[1:]]
    spatial = [(side - layer.kernel) // layer.stride + 1 for side in padded]
    output = (layer.outputs, *spatial)
    result = math.prod(output) * itemsize
    wide = layer.inputs * math.prod(padded) * itemsize
    weight = (layer.outputs, layer.inputs, *(layer.kernel for _ in spatial))
    patches = max(PATCH_BYTES, patch_bytes(weight, math.prod(spatial), itemsize))
    # the products of two passes over one part, and the weight's gradient while it is summed
    once = 2 * patches + 2 * math.prod(weight) * itemsize
    return LayerCost(output, result + (wide if layer.padding else 0), wide + 2 * result, once)


def patch_bytes(weight: Shape, length: int, itemsize: int) -> int:
    """Return the bytes of one example's patches, or of their products, in a convolution.

    Args:
        weight: the shape of the convolution's weight.
        length: the number of positions of its kernel.
    """
    return math.prod(weight[1:]) * max(length, weight[0]) * itemsize


def _recurrent(layer: layers.GRU | layers.LSTM, shape: Shape, itemsize: int) -> LayerCost:
    time, features = shape
    output = (time, layer.hidden) if layer.sequence else (layer.hidden,)
    if isinstance(layer, layers.GRU):
        # gates, states, and what the reset gate is applied to
        kept = ((3 + 1 + 1) * time + 1) * layer.hidden * itemsize
    else:
        # gates, states and cells
        kept = ((4 + 1 + 1) * time + 2) * layer.hidden * itemsize
    # the input with time first
    at_once = 2 * time * features + 2 * time * layer.hidden + 20 * layer.hidden
    return LayerCost(output, kept, at_once * itemsize)
