"""A network of one hidden layer and its plain training in float64, to check narrow devices by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fl_client.datasets.device import Device
from fl_client.models.layers import Layers, Linear, Tanh
from fl_client.models.settings import TrainingSettings
from fl_client.tasks.base import Task
from fl_client.tasks.split import Split
from storage.weights import Weights

Array = np.ndarray[Any, Any]
INPUTS, HIDDEN, CLASSES = 5, 8, 3
STEPS, RATE = 3, 0.2


def random(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


class Rows(Task):
    """Rows of one random data set, unequal slices for the devices, each step on all of them."""

    training = TrainingSettings(local_epochs=STEPS, batch_size=10_000, learning_rate=RATE)

    def model(self) -> Layers:
        return [Linear(INPUTS, HIDDEN), Tanh(), Linear(HIDDEN, CLASSES)]

    def data(self, device: Device) -> tuple[Split, Split]:
        x = random(0, 90, INPUTS)
        y = (x @ random(1, INPUTS, CLASSES)).argmax(1)
        low, high = 90 * device.index**2 // 9, 90 * (device.index + 1) ** 2 // 9
        return (x[low:high], y[low:high]), (x[:10], y[:10])


@dataclass
class Network:
    """The weights of the task's model."""

    w1: Array
    b1: Array
    w2: Array
    b2: Array

    @classmethod
    def of(cls, weights: Weights) -> Network:
        arrays = weights.arrays()
        names = ("0.weight", "0.bias", "2.weight", "2.bias")
        return cls(*(arrays[name].astype(np.float64) for name in names))

    def units(self, kept: Sequence[int]) -> Network:
        """Return the network of some of the hidden units."""
        rows = list(kept)
        return Network(self.w1[rows], self.b1[rows], self.w2[:, rows], self.b2.copy())

    def gradient(self, x: Array, y: Array, scale: float = 1.0) -> Network:
        """Return the gradient of the mean cross entropy; the hidden sums are times ``scale``."""
        hidden = np.tanh((x @ self.w1.T + self.b1) * scale)
        outputs = hidden @ self.w2.T + self.b2
        exps = np.exp(outputs - outputs.max(1, keepdims=True))
        error = (exps / exps.sum(1, keepdims=True) - np.eye(CLASSES)[y]) / len(x)
        below = (error @ self.w2) * (1 - hidden**2) * scale
        return Network(below.T @ x, below.sum(0), error.T @ hidden, error.sum(0))

    def less(self, rate: float, g: Network) -> Network:
        """Return the weights after a step of gradient descent."""
        pairs = zip(vars(self).values(), vars(g).values(), strict=True)
        return Network(*(own - rate * each for own, each in pairs))

    def put(self, kept: Sequence[int], other: Network) -> Network:
        """Return the network with some hidden units, and the outputs' biases, of another."""
        w1, b1, w2 = self.w1.copy(), self.b1.copy(), self.w2.copy()
        rows = list(kept)
        w1[rows], b1[rows], w2[:, rows] = other.w1, other.b1, other.w2
        return Network(w1, b1, w2, other.b2)

    def flat(self) -> Array:
        return np.concatenate([each.reshape(-1) for each in vars(self).values()])


def data_of(index: int) -> tuple[Array, Array]:
    """Return what a device of three trains on."""
    (x, y), _ = Rows().data(Device("", index, 3))
    return x, y


def averaged(base: Network, trained: Sequence[tuple[Sequence[int], Network, int]]) -> Array:
    """Return the next version: of each coordinate the mean over those that trained it.

    Args:
        trained: of each device the hidden units that it had, its weights, and its examples.
    """
    total, weights = np.zeros_like(base.flat()), np.zeros_like(base.flat())
    zeros = Network(*(np.zeros_like(each) for each in vars(base).values()))
    ones = Network(*(np.ones_like(each) for each in vars(base).values()))
    for kept, network, examples in trained:
        total += examples * zeros.put(kept, network).flat()
        weights += examples * zeros.put(kept, ones.units(kept)).flat()
    return np.where(weights > 0, total / np.maximum(weights, 1), base.flat())
