"""The digits task whose devices wait, after they have trained, while a test holds their gate.

The gates are files in RENGO_CHAOS_GATES; a device that stands before one says so in a file beside.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from fl_client.models.local_round import LocalUpdate
from fl_client.tasks.context import LocalContext
from fl_client.tasks.digits import Digits
from storage.weights import Vector

FOLDER = "RENGO_CHAOS_GATES"


class GatedDigits(Digits):
    def local_update(self, weights: Vector, context: LocalContext) -> LocalUpdate:
        del weights
        update = context.train()
        gate = Path(os.environ[FOLDER]) / context.device.id
        if gate.exists():
            reached(gate).touch()
        while gate.exists():
            time.sleep(0.01)
        return update


def reached(gate: Path) -> Path:
    """Return the file by which a device says that it stands before its gate."""
    return gate.with_suffix(".reached")
