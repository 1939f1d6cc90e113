"""MNIST: handwritten digits of 28 x 28 pixels, ten classes."""

from __future__ import annotations

from fl_client.datasets.public.mnist import DATASET
from fl_client.tasks._images import ImageTask


class Mnist(ImageTask):
    """MNIST, with the perceptron of the FedAvg paper unless another model is named."""

    dataset = DATASET
