"""Handwritten digits: 1,797 images of 8 x 8 pixels, ten classes. Needs no network.

The images are those of ``sklearn.datasets.load_digits``, which is the test set of the UCI
"Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak, 1998,
https://doi.org/10.24432/C50P49, licence CC BY 4.0); here as bytes 0..16 in ``data/digits.npz``.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from fl_client.datasets.device import Device
from fl_client.datasets.splits.partitions import dirichlet
from fl_client.models.layers import Layers, Linear, ReLU
from fl_client.models.settings import TrainingSettings
from fl_client.tasks.base import Task
from fl_client.tasks.split import Split

_Arrays = tuple[NDArray[Any], NDArray[Any]]


class Digits(Task):
    """Digits, partitioned over the devices by Dirichlet; a fifth is for the evaluators alone."""

    training = TrainingSettings(local_epochs=5, learning_rate=0.3, momentum=0.5)
    alpha: ClassVar[float] = 0.5
    held_out: ClassVar[float] = 0.2
    min_examples: ClassVar[int] = 10

    def model(self) -> Layers:
        """Return a perceptron with one hidden layer of 32."""
        return [Linear(64, 32), ReLU(), Linear(32, 10)]

    def data(self, device: Device) -> tuple[Split, Split]:
        """Return a trainer's part (a tenth of it held out) or an evaluator's held-out fifth."""
        images, labels = load_digits()
        order = np.random.default_rng(device.seed).permutation(len(labels))
        reserved = round(self.held_out * len(labels))
        if device.role == "evaluator":
            return None, _select(images, labels, order[:reserved])
        rest = order[reserved:]
        smallest = min(self.min_examples, len(rest) // device.count)
        parts = dirichlet(labels[rest], device.count, self.alpha, device.seed, smallest)
        own = np.random.default_rng([device.seed, device.index]).permutation(
            rest[parts[device.index]]
        )
        cut = len(own) // 10
        return _select(images, labels, own[cut:]), _select(
            images, labels, own[:cut]
        ) if cut else None


def load_digits() -> _Arrays:
    """Return all images, float32 [1797, 64] within 0..1, and their labels, int64 [1797]."""
    with (files("fl_client.tasks") / "data" / "digits.npz").open("rb") as file:
        stored = np.load(cast("Any", file), allow_pickle=False)
        return stored["images"].astype(np.float32) / 16, stored["labels"].astype(np.int64)


def _select(images: NDArray[Any], labels: NDArray[Any], chosen: NDArray[Any]) -> _Arrays:
    return images[chosen], labels[chosen]
