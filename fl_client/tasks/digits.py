"""Handwritten digits of 8 x 8 pixels, ten classes. Needs no network."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from fl_client.datasets.device import Device
from fl_client.datasets.public.digits import load_digits
from fl_client.models.layers import Layers, Linear, ReLU
from fl_client.models.settings import TrainingSettings
from fl_client.tasks._models import IMAGE_MODELS
from fl_client.tasks._shared_data import Array, Pool, SharedDataTask

if TYPE_CHECKING:
    import torch


class Digits(SharedDataTask):
    """Digits, partitioned over the devices by Dirichlet; a fifth is for the evaluators alone."""

    training = TrainingSettings(local_epochs=5, learning_rate=0.3, momentum=0.5)
    partition = "dirichlet:0.5"
    example = (1, 8, 8)
    models = ("mlp", *IMAGE_MODELS)
    held_out: ClassVar[float] = 0.2

    def model(self) -> Layers | torch.nn.Module:
        """Return a perceptron with one hidden layer of 32, unless another model is named."""
        if self.architecture in ("", "mlp"):
            return [Linear(64, 32), ReLU(), Linear(32, 10)]
        return super().model()

    def inputs(self, chosen: Array) -> Array:
        """Return images flat for the perceptron, else as [n, 1, 8, 8]."""
        flat = self.architecture in ("", "mlp")
        return chosen if flat else chosen.reshape(-1, *self.example)

    def pool(self, device: Device) -> Pool:
        """Return all images, float32 [n, 64]; the seed decides which are the evaluators'."""
        images, labels = load_digits()
        order = np.random.default_rng(device.seed).permutation(len(labels))
        reserved = round(self.held_out * len(labels))
        test, rest = order[:reserved], order[reserved:]
        return Pool(images[rest], labels[rest], images[test], labels[test], labels[rest])
