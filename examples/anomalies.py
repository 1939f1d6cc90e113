"""Anomalies: an autoencoder learns what is usual, and the devices agree on a threshold."""

from __future__ import annotations

import numpy as np

from rengo import Device, Linear, Tanh, Task, TrainingSettings

SENSORS = [f"sensor{number}" for number in range(8)]


class Anomalies(Task):
    """Eight readings in, the same eight out, through a layer of three."""

    objective = "mean_squared_error"
    goals = {"error": "lower", "error_squared": "lower"}
    training = TrainingSettings(local_epochs=10, batch_size=16, learning_rate=0.3, momentum=0.9)

    def model(self) -> list[Linear | Tanh]:
        return [Linear(8, 16), Tanh(), Linear(16, 3), Linear(3, 16), Tanh(), Linear(16, 8)]

    def data(self, device: Device) -> tuple:
        source = {"kind": "csv", "features": SENSORS}
        parts = device.dataset({"source": source}).splits()
        return tuple(None if part is None else (part[0], part[0]) for part in parts)

    def metrics(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        # the mean and the mean square tell the spread of all devices' errors
        errors = ((outputs - targets) ** 2).mean(1, dtype=np.float64)
        return {"error": float(errors.mean()), "error_squared": float((errors**2).mean())}
