"""A task whose rounds change one small part of the model each, a different one every time."""

from __future__ import annotations

from typing import Any

import numpy as np

from rengo import Device, Linear, Task

SIDE = 1024
PARAMETERS = SIDE * SIDE
PART = 1 << 14
STRIDE = 1 << 16
PARTS = PARAMETERS // STRIDE


def part_of(round_number: int) -> slice:
    """Return what round ``round_number`` changes."""
    start = round_number % PARTS * STRIDE
    return slice(start, start + PART)


class MovingPart(Task):
    """4 MiB, of which a round changes 64 KiB; every device sends the same."""

    def model(self) -> list[Linear]:
        return [Linear(SIDE - 1, SIDE)]

    def data(self, device: Device) -> tuple[Any, Any]:
        return None, None

    def local_update(self, weights: Any, context: Any) -> tuple[Any, int, dict[str, float]]:
        change = np.zeros_like(weights)
        change[part_of(context.round.round)] = 0.5
        return change, 1, {}
