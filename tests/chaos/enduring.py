"""Digits trained for a while, with an algorithm's state that counts a device's accepted rounds."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from fl_client.models.local_round import LocalUpdate
from fl_client.models.settings import TrainingSettings
from fl_client.tasks.context import LocalContext
from fl_client.tasks.digits import Digits
from storage.weights import Vector


class Enduring(Digits):
    name: ClassVar[str] = "enduring"
    training = TrainingSettings(local_epochs=60, batch_size=8, learning_rate=0.05, momentum=0.5)

    def local_update(self, weights: Vector, context: LocalContext) -> LocalUpdate:
        del weights
        update = context.train()
        counted = context.round.state.get("counted", np.zeros(1, np.float32))
        metrics = {**update.metrics, "counted": float(counted[0])}
        return update._replace(metrics=metrics, state={"counted": counted + 1})
