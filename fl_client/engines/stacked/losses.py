"""The losses of declarative tasks, for a batch of each of several clients at once."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fl_client.models.settings import Objective

Array: TypeAlias = NDArray[Any]
Share: TypeAlias = Array | np.float32
"""How much each example counts in its client's mean, [clients, batch]; a number where all alike."""


def loss_of(
    objective: Objective, outputs: Array, targets: Array, share: Share
) -> tuple[Array, Array]:
    """Return each client's mean loss, [clients], and its gradient at the outputs.

    Args:
        outputs: [clients, batch, ...], which may be overwritten.
        targets: class numbers [clients, batch] for the cross entropy, else as the outputs.
        share: how much each example counts.
    """
    if objective == "cross_entropy":
        return _cross_entropy(outputs, targets, share)
    if objective == "binary_cross_entropy":
        return _binary_cross_entropy(outputs, targets, share)
    return _squared_error(outputs, targets, share)


def _cross_entropy(outputs: Array, targets: Array, share: Share) -> tuple[Array, Array]:
    clients, batch, classes = outputs.shape
    y = np.ascontiguousarray(outputs)
    y -= np.maximum.reduce(y, 2, keepdims=True)
    flat = y.reshape(-1)
    at = np.arange(0, flat.size, classes)
    at += targets.reshape(-1)
    chosen = flat.take(at).reshape(clients, batch)
    np.exp(y, out=y)
    sums = np.add.reduce(y, 2)
    y /= sums[:, :, np.newaxis]
    flat[at] -= 1
    y *= np.asarray(share)[..., np.newaxis]
    losses = np.log(sums)
    losses -= chosen
    losses *= share
    return np.add.reduce(losses, 1), y


def _squared_error(outputs: Array, targets: Array, share: Share) -> tuple[Array, Array]:
    error = np.subtract(outputs, targets, out=outputs)
    rows = error.reshape(*error.shape[:2], -1)
    mean = share * np.float32(1 / rows.shape[2])
    losses = np.einsum("cbi,cbi->cb", rows, rows) * mean
    error *= _column(2 * mean, error.ndim)
    return np.add.reduce(losses, 1), error


def _binary_cross_entropy(outputs: Array, targets: Array, share: Share) -> tuple[Array, Array]:
    clients, batch, count = *outputs.shape[:2], math.prod(outputs.shape[2:])
    small = np.exp(-np.abs(outputs))
    losses = np.maximum(outputs, 0) - outputs * targets + np.log1p(small)
    mean = share * np.float32(1 / count)
    gradient = np.where(outputs > 0, 1, small) / (1 + small)
    gradient -= targets
    gradient *= _column(mean, gradient.ndim)
    of_examples = losses.reshape(clients, batch, count).sum(2) * mean
    return np.add.reduce(of_examples, 1), gradient


def _column(share: Share, rank: int) -> Any:
    """Return the shares with axes of one for what follows the batch."""
    if np.ndim(share) == 0:
        return share
    return np.reshape(share, (*np.shape(share), *(1 for _ in range(rank - 2))))
