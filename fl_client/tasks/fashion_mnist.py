"""Fashion-MNIST: pictures of clothes of 28 x 28 pixels, ten classes."""

from __future__ import annotations

from fl_client.datasets.public.fashion_mnist import DATASET
from fl_client.tasks._images import ImageTask


class FashionMnist(ImageTask):
    """Fashion-MNIST, in all else as ``mnist``."""

    dataset = DATASET
