"""Tasks without training: each device returns slightly perturbed weights of a given size."""

from __future__ import annotations

from typing import Any

import numpy as np

from rengo import Device, Linear, Task


class _Perturb(Task):
    side = 0

    def model(self) -> list[Linear]:
        return [Linear(self.side - 1, self.side)]  # (side - 1) * side weights and side biases

    def data(self, device: Device) -> tuple[Any, Any]:
        return None, None

    def local_update(self, weights: Any, context: Any) -> tuple[Any, int, dict[str, float]]:
        del context
        return weights * np.float32(1e-3), 1, {}


class Noop(_Perturb):
    """A model of six numbers: what a round costs by itself."""

    side = 2


class Perturb1(_Perturb):
    """1 MiB of float32."""

    name = "perturb-1"
    side = 512


class Perturb25(_Perturb):
    """25 MiB of float32."""

    name = "perturb-25"
    side = 2560


class Perturb100(_Perturb):
    """100 MiB of float32."""

    name = "perturb-100"
    side = 5120


class PerturbSmall(_Perturb):
    """64 KiB of float32."""

    name = "perturb-small"
    side = 128
