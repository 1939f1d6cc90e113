"""A task without training whose update is of a few parts, once parts are small."""

from __future__ import annotations

from typing import Any

import numpy as np

from rengo import Device, Linear, Task


class LargeUpdate(Task):
    """48 MiB of float32; no value of its update is zero."""

    def model(self) -> list[Linear]:
        return [Linear(3071, 4096)]

    def data(self, device: Device) -> tuple[Any, Any]:
        return None, None

    def local_update(self, weights: Any, context: Any) -> tuple[Any, int, dict[str, float]]:
        del context
        return np.full(weights.shape, 0.5, np.float32), 1, {}
