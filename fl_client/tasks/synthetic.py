"""Synthetic(alpha, beta) of the FedProx paper: users with models and inputs of their own."""

from __future__ import annotations

from functools import lru_cache
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fl_client.datasets.device import Device
from fl_client.datasets.public.synthetic import CLASSES, FEATURES, USERS, Synthetic
from fl_client.models.settings import TrainingSettings
from fl_client.tasks._shared_data import Pool, SharedDataTask
from fl_client.tasks.split import Split

MEASURED_USERS = 1000


class SyntheticUsers(SharedDataTask):
    """Made-up users, at least 30 of them; the last tenth of each one's examples is evaluators'."""

    name = "synthetic"
    training = TrainingSettings(local_epochs=20, batch_size=10, learning_rate=0.01)
    partition = "natural"
    example = (FEATURES,)
    classes = CLASSES
    models = ("logistic", "2nn")
    distribution: ClassVar[Synthetic] = Synthetic(alpha=1.0, beta=1.0)

    def is_divided(self, device: Device) -> bool:
        """Return False where a device is one user, who is made without the others."""
        alone = (device.partition or self.partition) == "natural" and device.count >= USERS
        return not (alone and type(self).data is SyntheticUsers.data)

    def data(self, device: Device) -> tuple[Split, Split]:
        """Return the examples of a trainer's own user alone, or see ``SharedDataTask``."""
        if self.is_divided(device) or device.role == "evaluator":
            return super().data(device)
        # as `natural` deals them
        number = int(_dealt(device.count, device.seed)[device.index])
        inputs, labels = self.distribution.user(number, device.seed)
        cut = len(labels) * 9 // 10
        pool = Pool(inputs[:cut], labels[:cut], inputs[cut:], labels[cut:], labels[:cut])
        return self.trainers_part(pool, np.arange(cut), device)

    def pool(self, device: Device) -> Pool:
        """Return the examples of all users, who are as many as the devices or more.

        Evaluators measure on those of a thousand of them at most.
        """
        count = max(USERS, device.count)
        if device.role == "evaluator":
            count = min(count, MEASURED_USERS)
        users = [self.distribution.user(number, device.seed) for number in range(count)]
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


@lru_cache(maxsize=1)
def _dealt(count: int, seed: int) -> NDArray[np.int64]:
    """Return which user each of the devices is."""
    return np.random.default_rng(seed).permutation(count)
