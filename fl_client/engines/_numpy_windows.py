"""Convolution and pooling in numpy, over one or two axes alike.

A convolution is a matrix product with patches of its input. The patches are copied for a few
examples at a time, and again in the backward pass, because all of them would need the most memory.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from fl_client.engines._numpy_call import Array, Backward, LayerCall
from fl_client.models import layers, memory


def convolution(
    layer: layers.Conv1d | layers.Conv2d, call: LayerCall, x: Array
) -> tuple[Array, Backward]:
    """Return the cross-correlation of [batch, channels, ...] with the layer's kernels."""
    weight, bias = call.tensor("weight"), call.optional("bias")
    windows, padded = _windows(x, weight.shape[2:], layer.stride, layer.padding)
    batch, spatial = len(x), windows.shape[weight.ndim :]
    matrix = weight.reshape(len(weight), -1)
    rows, length = matrix.shape[1], math.prod(spatial)
    y = np.empty((batch, len(weight), length), x.dtype)
    parts = list(_parts(batch, memory.patch_bytes(weight.shape, length, x.itemsize)))
    for part in parts:
        np.matmul(matrix, windows[part].reshape(-1, rows, length), out=y[part])
    if bias is not None:
        y += bias[:, None]

    def backward(dy: Array) -> Array:
        flat = dy.reshape(batch, len(weight), length)
        if bias is not None:
            call.store_gradient("bias", flat.sum((0, 2)))
        total = np.zeros_like(matrix)
        dx = None if call.first else np.zeros_like(padded)
        for part in parts:
            patches = windows[part].reshape(-1, rows, length)
            total += np.matmul(flat[part], patches.transpose(0, 2, 1)).sum(0)
            del patches
            if dx is not None:
                spread = np.matmul(matrix.T, flat[part])
                _scatter(spread.reshape(windows[part].shape), dx[part], layer.stride)
        call.store_gradient("weight", total.reshape(weight.shape))
        return dy if dx is None else _without_padding(dx, layer.padding)

    return y.reshape(batch, len(weight), *spatial), backward


def _windows(x: Array, kernel: layers.Shape, stride: int, padding: int) -> tuple[Array, Array]:
    """Return a view [batch, channels, *kernel, *positions], and the padded input under it."""
    axes = tuple(range(2, x.ndim))
    padded = np.pad(x, [(0, 0)] * 2 + [(padding, padding)] * len(axes)) if padding else x
    every = sliding_window_view(padded, kernel, axes)
    every = every[(slice(None), slice(None), *(slice(None, None, stride) for _ in axes))]
    inner = tuple(range(x.ndim, x.ndim + len(axes)))
    return every.transpose(0, 1, *inner, *axes), padded


def _parts(batch: int, example_bytes: int) -> Iterator[slice]:
    size = max(1, memory.PATCH_BYTES // example_bytes)
    return (slice(start, start + size) for start in range(0, batch, size))


def _scatter(spread: Array, dx: Array, stride: int) -> None:
    """Add the gradient of every patch to ``dx`` at the patch's position."""
    axes = dx.ndim - 2
    kernel, positions = spread.shape[2 : 2 + axes], spread.shape[2 + axes :]
    from_offset = np.moveaxis(spread, (0, 1), (axes, axes + 1))
    for offset in itertools.product(*(range(side) for side in kernel)):
        target = tuple(
            slice(first, first + stride * count, stride)
            for first, count in zip(offset, positions, strict=True)
        )
        dx[(slice(None), slice(None), *target)] += from_offset[offset]


def _without_padding(dx: Array, padding: int) -> Array:
    inner = tuple(slice(padding, side - padding) for side in dx.shape[2:])
    return dx[(slice(None), slice(None), *inner)]


def max_pool(size: int, x: Array) -> tuple[Array, Backward]:
    """Return each window's maximum; of the input, only their positions are stored."""
    y: Array | None = None
    best: Array | None = None
    for number, where in enumerate(_offsets(size, x)):
        values = x[where]
        if y is None or best is None:
            y, best = values.copy(), np.zeros(values.shape, _index_type(size, x.ndim - 2))
            continue
        # of equal values the first, and a NaN above all, as in torch
        better = (values > y) | np.isnan(values)
        np.copyto(y, values, where=better)
        best[better] = number
    if y is None or best is None:
        raise AssertionError("a window has at least one position")
    positions, shape = best, x.shape

    def backward(dy: Array) -> Array:
        dx = np.zeros(shape, dy.dtype)
        for number, where in enumerate(_offsets(size, dx)):
            np.copyto(dx[where], dy, where=positions == number)
        return dx

    return y, backward


def average_pool(size: int, x: Array) -> tuple[Array, Backward]:
    """Return each window's mean."""
    count, shape = size ** (x.ndim - 2), x.shape
    y: Array = sum(x[where] for where in _offsets(size, x)) / count

    def backward(dy: Array) -> Array:
        dx, part = np.zeros(shape, dy.dtype), dy / count
        for where in _offsets(size, dx):
            dx[where] = part
        return dx

    return y, backward


def global_average(x: Array) -> tuple[Array, Backward]:
    """Return each channel's mean: [batch, channels]."""
    axes, shape = tuple(range(2, x.ndim)), x.shape

    def backward(dy: Array) -> Array:
        share = dy / math.prod(shape[2:])
        return np.broadcast_to(share.reshape(*dy.shape, *(1 for _ in axes)), shape).copy()

    return x.mean(axes), backward


def _offsets(size: int, x: Array) -> Iterator[tuple[slice, ...]]:
    """Yield the positions of the first value of all windows, then of the second, and so on."""
    ends = [side // size * size for side in x.shape[2:]]
    for offset in itertools.product(range(size), repeat=x.ndim - 2):
        inner = (slice(first, end, size) for first, end in zip(offset, ends, strict=True))
        yield (slice(None), slice(None), *inner)


def _index_type(size: int, axes: int) -> type[np.integer]:
    return np.uint8 if size**axes <= 256 else np.int32
