"""How many floating-point operations a model takes an example, from its list of layers. Pure."""

from __future__ import annotations

import math

from fl_client.models import layers
from fl_client.models.layers import Layer, Layers, Shape
from fl_client.models.memory import layer_costs

TRAINING = 3.0
"""A backward pass computes two products for each of the forward pass: for the weights and for the
inputs."""


def forward_flops(model: Layers, shape: Shape) -> float:
    """Return the operations of one example's forward pass; a product and its sum are two.

    Args:
        shape: of one example's input.
    """
    total = 0.0
    for layer, cost in zip(model, layer_costs(model, shape), strict=True):
        total += _operations(layer, shape, cost.output)
        shape = cost.output
    return total


def forward_flops_of(parameters: int) -> float:
    """Return the operations of a forward pass in which each weight is used once.

    That is what dense layers do. Convolutions use theirs more often.
    """
    return 2.0 * parameters


def _operations(layer: Layer, shape: Shape, output: Shape) -> float:
    outputs = math.prod(output)
    match layer:
        case layers.Linear():
            return 2.0 * layer.inputs * outputs
        case layers.Conv1d():
            return 2.0 * layer.inputs * layer.kernel * outputs
        case layers.Conv2d():
            return 2.0 * layer.inputs * layer.kernel**2 * outputs
        case layers.GRU() | layers.LSTM():
            gates = 3 if isinstance(layer, layers.GRU) else 4
            return 2.0 * gates * layer.hidden * (layer.inputs + layer.hidden) * shape[0]
    return float(max(outputs, math.prod(shape)))
