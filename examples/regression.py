"""A number to be foretold: what a house needs for heating, from a CSV file."""

from __future__ import annotations

import numpy as np

from rengo import Device, Linear, ReLU, Task, TrainingSettings

USUAL, SPREAD = np.float32([120, 5]), np.float32([50, 10])


class Heating(Task):
    """Area and degrees outside in, kWh a day out."""

    objective = "mean_squared_error"
    goals = {"mae": "lower", "r2": "higher"}
    training = TrainingSettings(local_epochs=5, batch_size=16, learning_rate=0.05)

    def model(self) -> list[Linear | ReLU]:
        return [Linear(2, 16), ReLU(), Linear(16, 1)]

    def data(self, device: Device) -> tuple:
        source = {"kind": "csv", "features": ["area", "degrees"], "label": "kwh"}
        return tuple(scaled(part) for part in device.dataset({"source": source}).splits())

    def metrics(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        error = outputs - targets
        explained = 1 - (error**2).mean() / targets.var() if len(targets) > 1 else np.nan
        # 50 as in `scaled`: the error in kWh
        return {"mae": float(50 * np.abs(error).mean()), "r2": float(explained)}


def scaled(part: tuple | None) -> tuple | None:
    """Return inputs and targets of about the size 1; the same on every device."""
    return None if part is None else ((part[0] - USUAL) / SPREAD, part[1] / 50)
