"""Digits on two devices, of which the second takes its time for every step."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import ClassVar

from fl_client.models.local_round import LocalUpdate
from fl_client.models.settings import TrainingSettings
from fl_client.tasks.context import LocalContext
from fl_client.tasks.digits import Digits
from storage.weights import Vector


class Uneven(Digits):
    name: ClassVar[str] = "uneven"
    alpha: ClassVar[float] = 100.0
    step_s: ClassVar[float] = 0.05
    training = TrainingSettings(local_epochs=4, learning_rate=0.3, momentum=0.5)

    def local_update(self, weights: Vector, context: LocalContext) -> LocalUpdate:
        del weights
        if context.device.index and self.step_s:
            slowly = replace(context.round, progress=lambda *_: time.sleep(self.step_s))
            context = replace(context, round=slowly)
        return context.train()


class Even(Uneven):
    """The same training, as fast on both."""

    step_s: ClassVar[float] = 0.0
