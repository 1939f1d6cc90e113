"""A task without training whose model is as large as RENGO_SIZE_MIB says."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from rengo import Device, Linear, Task
from storage.weights import Weights

VARIABLE = "RENGO_SIZE_MIB"
_SIDE = 8192


class Large(Task):
    name = "large"

    @property
    def rows(self) -> int:
        return int(os.environ[VARIABLE]) * (1 << 18) // _SIDE - 1

    def model(self) -> list[Linear]:
        return [Linear(self.rows, _SIDE)]

    def data(self, device: Device) -> tuple[Any, Any]:
        return None, None

    def initial_weights(self, seed: int) -> Weights:
        generator = np.random.default_rng(seed)
        return Weights.from_arrays(
            {
                "0.weight": generator.random((_SIDE, self.rows), np.float32),
                "0.bias": generator.random(_SIDE, np.float32),
            }
        )

    def local_update(self, weights: Any, context: Any) -> tuple[Any, int, dict[str, float]]:
        """Return a small change, made where the weights were: one vector in all."""
        del weights
        vector = context.own_weights()
        vector *= np.float32(1e-3)
        return vector, 1, {}
