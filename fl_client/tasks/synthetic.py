"""Synthetic(alpha, beta) of the FedProx paper: users with models and inputs of their own."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from fl_client.datasets.device import Device
from fl_client.datasets.public.synthetic import CLASSES, FEATURES, USERS, Synthetic
from fl_client.models.settings import TrainingSettings
from fl_client.tasks._shared_data import Pool, SharedDataTask


class SyntheticUsers(SharedDataTask):
    """Made-up users, at least 30 of them; the last tenth of each one's examples is evaluators'."""

    name = "synthetic"
    training = TrainingSettings(local_epochs=20, batch_size=10, learning_rate=0.01)
    partition = "natural"
    example = (FEATURES,)
    classes = CLASSES
    models = ("logistic", "2nn")
    distribution: ClassVar[Synthetic] = Synthetic(alpha=1.0, beta=1.0)

    def pool(self, device: Device) -> Pool:
        """Return the examples of all users, who are as many as the devices or more."""
        users = [
            self.distribution.user(number, device.seed)
            for number in range(max(USERS, device.count))
        ]
        cuts = [len(labels) * 9 // 10 for _, labels in users]
        pairs = list(zip(users, cuts, strict=True))
        targets = np.concatenate([labels[:cut] for (_, labels), cut in pairs])
        return Pool(
            np.concatenate([inputs[:cut] for (inputs, _), cut in pairs]),
            targets,
            np.concatenate([inputs[cut:] for (inputs, _), cut in pairs]),
            np.concatenate([labels[cut:] for (_, labels), cut in pairs]),
            targets,
            np.repeat(np.arange(len(users)), cuts),
        )
