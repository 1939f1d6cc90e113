"""Forward and backward of every declarative layer in numpy.

Each function returns the output and a closure: given the gradient at the output, it stores the
weights' gradients and returns the gradient at the input.
"""

from __future__ import annotations

import math

import numpy as np

from fl_client.engines._numpy_call import Array, Backward, LayerCall
from fl_client.engines._numpy_recurrent import gru, lstm, sigmoid
from fl_client.engines._numpy_windows import (
    average_pool,
    convolution,
    global_average,
    max_pool,
)
from fl_client.models import layers
from runtime.errors import ConfigError


def forward(layer: layers.Layer, call: LayerCall, x: Array) -> tuple[Array, Backward]:
    """Return the layer's output for ``x`` and its backward function."""
    match layer:
        case layers.Linear():
            return _adapted(call, x) if layer.rank else _linear(call, x)
        case layers.Conv1d() | layers.Conv2d():
            return convolution(layer, call, x)
        case layers.BatchNorm():
            return _batch_norm(layer, call, x)
        case layers.LayerNorm():
            return _layer_norm(layer, call, x)
        case layers.GRU() | layers.LSTM():
            unit = gru if isinstance(layer, layers.GRU) else lstm
            return unit(call, x, sequence=layer.sequence)
        case layers.Embedding():
            return _embedding(call, x)
        case layers.Dropout():
            return _dropout(layer.rate, call, x)
    return _pooled(layer, x) or _plain(layer, call, x)


def _pooled(layer: layers.Layer, x: Array) -> tuple[Array, Backward] | None:
    match layer:
        case layers.MaxPool1d() | layers.MaxPool2d():
            return max_pool(layer.size, x)
        case layers.AvgPool1d() | layers.AvgPool2d():
            return average_pool(layer.size, x)
        case layers.GlobalAvgPool():
            return global_average(x)
    return None


def _plain(layer: layers.Layer, call: LayerCall, x: Array) -> tuple[Array, Backward]:
    """Return the output of an activation, or of a layer that only reshapes."""
    match layer:
        case layers.Flatten():
            return x.reshape(len(x), -1), lambda dy: dy.reshape(x.shape)
        case layers.Reshape():
            return x.reshape(len(x), *layer.shape), lambda dy: dy.reshape(x.shape)
        case layers.Transpose():
            return x.swapaxes(1, 2), lambda dy: dy.swapaxes(1, 2)
        case layers.ReLU():
            y = np.maximum(x, 0, out=x if call.in_place else None)
            return y, lambda dy: np.multiply(dy, y > 0, out=dy)
        case layers.Tanh():
            y = np.tanh(x, out=x if call.in_place else None)
            return y, lambda dy: dy * (1 - y * y)
        case layers.Sigmoid():
            y = sigmoid(x)
            return y, lambda dy: dy * y * (1 - y)
    raise ConfigError(f"the numpy engine has no layer {layer!r}")


def _linear(call: LayerCall, x: Array) -> tuple[Array, Backward]:
    weight, bias = call.tensor("weight"), call.optional("bias")

    def backward(dy: Array) -> Array:
        flat_dy, flat_x = dy.reshape(-1, dy.shape[-1]), x.reshape(-1, x.shape[-1])
        # the largest product of a layer with an adapter, where the adapter alone is trained
        if call.trains("weight"):
            call.store_gradient("weight", flat_dy.T @ flat_x)
        if bias is not None:
            call.store_gradient("bias", flat_dy.sum(0))
        return dy if call.first else dy @ weight

    y = x @ weight.T
    if bias is not None:
        y += bias
    return y, backward


def _adapted(call: LayerCall, x: Array) -> tuple[Array, Backward]:
    a, b = call.tensor("lora_a"), call.tensor("lora_b")
    y, backward_of_weight = _linear(call, x)
    inner = x @ a.T
    y += inner @ b.T

    def backward(dy: Array) -> Array:
        flat_dy, flat_inner = dy.reshape(-1, dy.shape[-1]), inner.reshape(-1, inner.shape[-1])
        d_inner = dy @ b
        call.store_gradient("lora_b", flat_dy.T @ flat_inner)
        call.store_gradient(
            "lora_a", d_inner.reshape(flat_inner.shape).T @ x.reshape(-1, x.shape[-1])
        )
        dx = backward_of_weight(dy)
        return dx if call.first else dx + d_inner @ a

    return y, backward


def _embedding(call: LayerCall, x: Array) -> tuple[Array, Backward]:
    weight, numbers = call.tensor("weight"), x.astype(np.int64)

    def backward(dy: Array) -> Array:
        gradient = np.zeros_like(weight)
        np.add.at(gradient, numbers, dy)
        call.store_gradient("weight", gradient)
        return dy

    return weight[numbers], backward


def _dropout(rate: float, call: LayerCall, x: Array) -> tuple[Array, Backward]:
    if call.masks is None or rate == 0:
        return x, lambda dy: dy
    keep, scale = call.masks.mask(call.index, x.shape, rate), 1 / (1 - rate)

    def masked(values: Array) -> Array:
        kept: Array = values * keep
        kept *= scale
        return kept

    return masked(x), masked


def _batch_norm(layer: layers.BatchNorm, call: LayerCall, x: Array) -> tuple[Array, Backward]:
    axes = (0, *range(2, x.ndim))
    column = (1, -1, *(1 for _ in range(2, x.ndim)))
    count = x.size // x.shape[1]
    running_mean, running_var = call.tensor("running_mean"), call.tensor("running_var")
    # a single value has no variance, see layers.BatchNorm
    over_batch = call.masks is not None and count > 1
    if over_batch:
        mean, variance = x.mean(axes), x.var(axes)
        running_mean += layer.momentum * (mean - running_mean)
        running_var += layer.momentum * (variance * (count / (count - 1)) - running_var)
    else:
        mean, variance = running_mean.copy(), running_var.copy()
    inverse = 1 / np.sqrt(variance + layer.epsilon)
    normal = x - mean.reshape(column)
    normal *= inverse.reshape(column)
    weight = call.tensor("weight")

    def backward(dy: Array) -> Array:
        scale, shift = (dy * normal).sum(axes), dy.sum(axes)
        call.store_gradient("weight", scale)
        call.store_gradient("bias", shift)
        if call.first:
            return dy
        if over_batch:
            # through the mean and the variance of the batch
            np.multiply(normal, (scale / count).reshape(column), out=normal)
            dy -= normal
            dy -= (shift / count).reshape(column)
        dy *= (weight * inverse).reshape(column)
        return dy

    y = normal * weight.reshape(column)
    y += call.tensor("bias").reshape(column)
    return y, backward


def _layer_norm(layer: layers.LayerNorm, call: LayerCall, x: Array) -> tuple[Array, Backward]:
    axes = tuple(range(x.ndim - len(layer.shape), x.ndim))
    others = tuple(range(x.ndim - len(layer.shape)))
    count = math.prod(layer.shape)
    inverse = 1 / np.sqrt(x.var(axes, keepdims=True) + layer.epsilon)
    normal = x - x.mean(axes, keepdims=True)
    normal *= inverse
    weight = call.tensor("weight")

    def backward(dy: Array) -> Array:
        call.store_gradient("weight", (dy * normal).sum(others))
        call.store_gradient("bias", dy.sum(others))
        if call.first:
            return dy
        dx: Array = dy * weight
        slope = (dx * normal).sum(axes, keepdims=True) / count
        dx -= dx.mean(axes, keepdims=True)
        dx -= normal * slope
        dx *= inverse
        return dx

    y = normal * weight
    y += call.tensor("bias")
    return y, backward
