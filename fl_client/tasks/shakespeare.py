"""The next character in what Shakespeare's characters say; speaking roles are the clients."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from fl_client.datasets.device import Device
from fl_client.datasets.public.shakespeare import VOCABULARY, encoded, load_roles
from fl_client.models.settings import TrainingSettings
from fl_client.tasks._shared_data import Array, Pool, SharedDataTask


class Shakespeare(SharedDataTask):
    """Windows of 80 characters, each with the same window one character on as its target.

    Of each role the last fifth is the evaluators'. A role that says too little is left out.
    """

    training = TrainingSettings(local_epochs=1, batch_size=50, learning_rate=1.0)
    partition = "natural"
    example = (80,)
    classes = len(VOCABULARY)
    models = ("gru", "lstm", "transformer")
    least_windows: ClassVar[int] = 5

    def pool(self, device: Device) -> Pool:
        """Return the windows of all roles, as numbers of characters, uint8 [n, 80]."""
        found = [self._windows(encoded(text)) for text in load_roles(device.folder).values()]
        roles = [windows for windows in found if len(windows) >= self.least_windows]
        cuts = [len(windows) * 4 // 5 for windows in roles]
        learned = np.concatenate([each[:cut] for each, cut in zip(roles, cuts, strict=True)])
        unseen = np.concatenate([each[cut:] for each, cut in zip(roles, cuts, strict=True)])
        owners = np.repeat(np.arange(len(roles)), cuts)
        return Pool(learned[:, :-1], learned[:, 1:], unseen[:, :-1], unseen[:, 1:], owners, owners)

    def _windows(self, numbers: Array) -> Array:
        """Return windows of 81 characters, each of which begins with the last of the one before."""
        (length,) = self.example
        count = max(0, (len(numbers) - 1) // length)
        starts = np.arange(count)[:, np.newaxis] * length
        return numbers[starts + np.arange(length + 1)] if count else np.empty((0, length + 1))
