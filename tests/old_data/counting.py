"""The task of the recorded data: digits, on devices that count the rounds that were accepted.

The count is client state as an algorithm keeps it: it becomes permanent with the receipt, and it
shows in the metrics of the next update.
"""

from __future__ import annotations

import numpy as np

from fl_client.models.local_round import LocalUpdate
from fl_client.tasks.context import LocalContext
from fl_client.tasks.digits import Digits
from storage.weights import Vector

ROUNDS = "rounds_counted"


class CountingDigits(Digits):
    def local_update(self, weights: Vector, context: LocalContext) -> LocalUpdate:
        del weights
        update = context.train()
        before = context.round.state.get(ROUNDS, np.zeros(1, np.float32))
        counted = {ROUNDS: (before + 1).astype(np.float32)}
        metrics = {**update.metrics, ROUNDS: float(counted[ROUNDS][0])}
        return update._replace(state={**update.state, **counted}, metrics=metrics)
