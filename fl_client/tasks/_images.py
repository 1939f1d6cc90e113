"""What the tasks on images of 28 x 28 pixels share."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from fl_client.datasets.device import Device
from fl_client.datasets.public.images import load_images
from fl_client.datasets.public.published import Published
from fl_client.models.settings import TrainingSettings
from fl_client.tasks._models import IMAGE_MODELS
from fl_client.tasks._shared_data import Array, Pool, SharedDataTask
from runtime.errors import ConfigError


class ImageTask(SharedDataTask):
    """Grey images in ten classes: 60,000 are divided over the devices, 10,000 are evaluators'."""

    training = TrainingSettings(local_epochs=1, batch_size=10, learning_rate=0.1)
    partition = "dirichlet:0.5"
    example = (1, 28, 28)
    models = IMAGE_MODELS
    dataset: ClassVar[Published | None] = None

    def pool(self, device: Device) -> Pool:
        """Return the published images as bytes, [n, 1, 28, 28]."""
        if self.dataset is None:
            raise ConfigError(f"task {self.name} names no data set")
        found = load_images(self.dataset, device.folder)
        return Pool(
            found.train_images,
            found.train_labels,
            found.test_images,
            found.test_labels,
            found.train_labels,
        )

    def inputs(self, chosen: Array) -> Array:
        """Return images as float32 with values in 0..1."""
        return chosen.astype(np.float32) / np.float32(255)
