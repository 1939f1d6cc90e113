"""Forward and backward of every declarative layer in numpy.

Each function returns the output and a closure that takes the gradient at the output and returns
the gradient at the input, after writing the weights' gradients into ``grads``.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from fl_client import layers
from runtime.errors import ConfigError

Array: TypeAlias = NDArray[Any]
Named: TypeAlias = MutableMapping[str, Array]
Backward: TypeAlias = Callable[[Array], Array]


def forward(
    layer: layers.Layer, index: int, x: Array, w: Named, grads: Named
) -> tuple[Array, Backward]:
    """Return the layer's output for ``x`` and its backward function."""
    match layer:
        case layers.Linear():
            return _linear(f"{index}", x, w, grads)
        case layers.Conv2d():
            return _conv2d(layer, f"{index}", x, w, grads)
        case layers.MaxPool2d():
            return _max_pool2d(layer.size, x)
        case layers.Flatten():
            return x.reshape(len(x), -1), lambda dy: dy.reshape(x.shape)
        case layers.Reshape():
            return x.reshape(len(x), *layer.shape), lambda dy: dy.reshape(x.shape)
        case layers.ReLU():
            y = np.maximum(x, 0)
            return y, lambda dy: dy * (y > 0)
        case layers.Tanh():
            y = np.tanh(x)
            return y, lambda dy: dy * (1 - y * y)
        case layers.Sigmoid():
            y = _sigmoid(x)
            return y, lambda dy: dy * y * (1 - y)
    raise ConfigError(f"the numpy engine has no layer {layer!r}")


def _sigmoid(x: Array) -> Array:
    # the exponent is never above 0, so it cannot overflow
    small = np.exp(-np.abs(x))
    top: Array = np.where(x >= 0, 1, small) / (1 + small)
    return top


def _linear(index: str, x: Array, w: Named, grads: Named) -> tuple[Array, Backward]:
    weight, bias = w[f"{index}.weight"], w.get(f"{index}.bias")

    def backward(dy: Array) -> Array:
        flat_dy, flat_x = dy.reshape(-1, dy.shape[-1]), x.reshape(-1, x.shape[-1])
        grads[f"{index}.weight"] = flat_dy.T @ flat_x
        if bias is not None:
            grads[f"{index}.bias"] = flat_dy.sum(0)
        dx: Array = dy @ weight
        return dx

    y = x @ weight.T
    return (y if bias is None else y + bias), backward


def _conv2d(
    layer: layers.Conv2d, index: str, x: Array, w: Named, grads: Named
) -> tuple[Array, Backward]:
    weight, bias = w[f"{index}.weight"], w.get(f"{index}.bias")
    side, stride, pad = layer.kernel, layer.stride, layer.padding
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad))) if pad else x
    windows = sliding_window_view(padded, (side, side), (2, 3))[:, :, ::stride, ::stride]
    batch, channels, rows, columns = windows.shape[:4]
    # one matrix row per output pixel, so that the products are matrix products
    patches = windows.transpose(0, 2, 3, 1, 4, 5).reshape(batch * rows * columns, -1)
    kernel = weight.reshape(len(weight), -1)
    y = patches @ kernel.T
    if bias is not None:
        y = y + bias

    def backward(dy: Array) -> Array:
        flat = dy.transpose(0, 2, 3, 1).reshape(-1, len(weight))
        grads[f"{index}.weight"] = (flat.T @ patches).reshape(weight.shape)
        if bias is not None:
            grads[f"{index}.bias"] = flat.sum(0)
        spread = (flat @ kernel).reshape(batch, rows, columns, channels, side, side)
        dx = np.zeros_like(padded)
        for i in range(side):
            for j in range(side):
                rows_to = slice(i, i + stride * rows, stride)
                columns_to = slice(j, j + stride * columns, stride)
                dx[:, :, rows_to, columns_to] += spread[..., i, j].transpose(0, 3, 1, 2)
        return dx[:, :, pad : pad + x.shape[2], pad : pad + x.shape[3]]

    return y.reshape(batch, rows, columns, -1).transpose(0, 3, 1, 2), backward


def _max_pool2d(size: int, x: Array) -> tuple[Array, Backward]:
    batch, channels, height, width = x.shape
    rows, columns = height // size, width // size
    kept = x[:, :, : rows * size, : columns * size]
    tiles = kept.reshape(batch, channels, rows, size, columns, size)
    tiles = tiles.transpose(0, 1, 2, 4, 3, 5).reshape(batch, channels, rows, columns, -1)
    # of equal values the first, as torch takes it
    best = tiles.argmax(-1)[..., None]

    def backward(dy: Array) -> Array:
        spread = np.zeros_like(tiles)
        np.put_along_axis(spread, best, dy[..., None], -1)
        spread = spread.reshape(batch, channels, rows, columns, size, size)
        dx = np.zeros_like(x)
        dx[:, :, : rows * size, : columns * size] = spread.transpose(0, 1, 2, 4, 3, 5).reshape(
            kept.shape
        )
        return dx

    return np.take_along_axis(tiles, best, -1)[..., 0], backward
