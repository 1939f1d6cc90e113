"""Forward and backward of layers for several clients at once, each with weights of its own.

Layers without weights treat every example alike, so the numpy engine's own functions run on the
examples of all clients. Only layers with weights are written again, as batched matrix products.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fl_client.engines._numpy_call import Array, Backward, LayerCall
from fl_client.engines._numpy_layers import forward as forward_of_one
from fl_client.models import layers
from fl_client.models.dropout import DropoutMasks
from fl_client.models.layers import Layers

_PER_EXAMPLE = (
    layers.Flatten,
    layers.Reshape,
    layers.Transpose,
    layers.Sigmoid,
    layers.MaxPool1d,
    layers.MaxPool2d,
    layers.AvgPool1d,
    layers.AvgPool2d,
    layers.GlobalAvgPool,
)
_WITH_KERNEL = (layers.Linear, layers.LayerNorm, layers.Dropout, layers.ReLU, layers.Tanh)

_LARGE = 50_000
"""From so many weights on, a product is faster with its result transposed."""


@dataclass(frozen=True)
class StackedCall:
    """One layer's part in a pass over the models of several clients.

    Attributes:
        index: the layer's number in the model.
        w: the models' tensors, [clients, ...] each; without that axis where all clients share one.
        grads: the gradients, [clients, ...] each. What is in it is overwritten.
        masks: each client's dropout of this step; None outside training.
        in_place: whether the input is not needed any more, so that it may be overwritten.
        first: whether no layer before this one is trained, so that its input needs no gradient.
    """

    index: int
    w: Mapping[str, Array]
    grads: MutableMapping[str, Array]
    masks: Sequence[DropoutMasks] | None = None
    in_place: bool = False
    first: bool = False

    def tensor(self, part: str) -> Array:
        """Return a tensor of this layer."""
        return self.w[f"{self.index}.{part}"]

    def product(self, part: str, one: Array, other: Array) -> None:
        """Store a product of matrices as the gradient of a weight."""
        name = f"{self.index}.{part}"
        self.grads[name] = np.matmul(one, other, out=self.grads.get(name))

    def total(self, part: str, values: Array, axes: Any) -> None:
        """Store a sum as the gradient of a weight."""
        name = f"{self.index}.{part}"
        self.grads[name] = np.add.reduce(values, axes, out=self.grads.get(name))


def unsupported(model: Layers) -> str | None:
    """Return the first layer that has no form for several clients at once, None if all have."""
    for index, layer in enumerate(model):
        if not isinstance(layer, (*_PER_EXAMPLE, *_WITH_KERNEL)):
            return f"layer {index}, {type(layer).__name__}"
    return None


def forward(layer: layers.Layer, call: StackedCall, x: Array) -> tuple[Array, Backward]:
    """Return the layer's output for ``x``, [clients, batch, ...], and its backward function."""
    match layer:
        case layers.Linear():
            return (_adapted if layer.rank else _linear)(layer, call, x)
        case layers.ReLU():
            y = np.maximum(x, 0, out=x if call.in_place else None)
            return y, lambda dy: np.multiply(dy, y > 0, out=dy)
        case layers.Tanh():
            return _tanh(call, x)
        case layers.LayerNorm():
            return _layer_norm(layer, call, x)
        case layers.Dropout():
            return _dropout(layer, call, x)
        case layers.Flatten():
            return x.reshape(*x.shape[:2], -1), lambda dy: dy.reshape(x.shape)
    return _per_example(layer, call, x)


def _per_example(layer: layers.Layer, call: StackedCall, x: Array) -> tuple[Array, Backward]:
    """Run a layer without weights on all clients' examples as one batch."""
    clients, batch = x.shape[:2]
    merged = x.reshape(clients * batch, *x.shape[2:])
    y, backward = forward_of_one(layer, LayerCall(call.index, {}, {}), merged)

    def split(dy: Array) -> Array:
        return backward(dy.reshape(clients * batch, *dy.shape[2:])).reshape(x.shape)

    return y.reshape(clients, batch, *y.shape[1:]), split


def _linear(layer: layers.Linear, call: StackedCall, x: Array) -> tuple[Array, Backward]:
    weight = call.tensor("weight")
    clients, inner = len(x), x.shape[1:-1]
    rows = x if x.ndim == 3 else x.reshape(clients, -1, x.shape[-1])
    if layer.inputs * layer.outputs < _LARGE:
        y = np.matmul(rows, weight.swapaxes(-1, -2))
    else:
        y = np.matmul(weight, rows.swapaxes(1, 2)).swapaxes(1, 2)
    if layer.bias:
        y += call.tensor("bias")[..., np.newaxis, :]

    def backward(dy: Array) -> Array:
        flat = dy if dy.ndim == 3 else dy.reshape(clients, -1, dy.shape[-1])
        dx = dy if call.first else np.matmul(flat, weight).reshape(x.shape)
        call.product("weight", flat.swapaxes(1, 2), rows)
        if layer.bias:
            call.total("bias", flat, 1)
        return dx

    return y if y.ndim == x.ndim else y.reshape(clients, *inner, layer.outputs), backward


def _adapted(layer: layers.Linear, call: StackedCall, x: Array) -> tuple[Array, Backward]:
    clients = len(x)
    a, b = call.tensor("lora_a"), call.tensor("lora_b")
    y, backward_of_weight = _linear(layer, call, x)
    rows = x.reshape(clients, -1, layer.inputs)
    inner = np.matmul(rows, a.swapaxes(-1, -2))
    y += np.matmul(inner, b.swapaxes(-1, -2)).reshape(y.shape)

    def backward(dy: Array) -> Array:
        flat = dy.reshape(clients, -1, layer.outputs)
        call.product("lora_b", flat.swapaxes(1, 2), inner)
        d_inner = np.matmul(flat, b)
        call.product("lora_a", d_inner.swapaxes(1, 2), rows)
        dx = backward_of_weight(dy)
        return dx if call.first else dx + np.matmul(d_inner, a).reshape(x.shape)

    return y, backward


def _tanh(call: StackedCall, x: Array) -> tuple[Array, Backward]:
    y = np.tanh(x, out=x if call.in_place else None)

    def backward(dy: Array) -> Array:
        dy *= 1 - y * y
        return dy

    return y, backward


def _layer_norm(layer: layers.LayerNorm, call: StackedCall, x: Array) -> tuple[Array, Backward]:
    axes = tuple(range(x.ndim - len(layer.shape), x.ndim))
    others = tuple(range(1, x.ndim - len(layer.shape)))
    inverse = 1 / np.sqrt(x.var(axes, keepdims=True) + layer.epsilon)
    normal = x - x.mean(axes, keepdims=True)
    normal *= inverse

    def spread(part: str) -> Array:
        """Return a tensor of the layer with axes of one for the batch and what follows it."""
        tensor = call.tensor(part)
        clients = tensor.shape[: tensor.ndim - len(layer.shape)]
        return tensor.reshape(*clients, *(1 for _ in others), *layer.shape)

    weight = spread("weight")

    def backward(dy: Array) -> Array:
        call.total("weight", dy * normal, others)
        call.total("bias", dy, others)
        if call.first:
            return dy
        dx: Array = dy * weight
        dx -= normal * (dx * normal).mean(axes, keepdims=True) + dx.mean(axes, keepdims=True)
        dx *= inverse
        return dx

    y = normal * weight
    y += spread("bias")
    return y, backward


def _dropout(layer: layers.Dropout, call: StackedCall, x: Array) -> tuple[Array, Backward]:
    if call.masks is None or layer.rate == 0:
        return x, lambda dy: dy
    keep = np.stack([each.mask(call.index, x.shape[1:], layer.rate) for each in call.masks])
    scale = 1 / (1 - layer.rate)

    def masked(values: Array) -> Array:
        kept: Array = values * keep
        kept *= scale
        return kept

    return masked(x), masked
