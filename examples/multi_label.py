"""Several labels at once: which faults a machine has, none, some or all of them."""

from __future__ import annotations

import numpy as np

from rengo import Device, Linear, Tanh, Task, TrainingSettings

INPUTS, LABELS = ("vibration", "noise", "heat"), ("bearing", "belt", "seal")


class Faults(Task):
    """Three sensors in; for each fault the log odds that the machine has it out."""

    objective = "binary_cross_entropy"
    goals = {"all_right": "higher", "accuracy": "higher"}
    training = TrainingSettings(local_epochs=5, batch_size=16, learning_rate=0.2, momentum=0.9)

    def model(self) -> list[Linear | Tanh]:
        return [Linear(3, 16), Tanh(), Linear(16, 3)]

    def data(self, device: Device) -> tuple:
        rows = np.genfromtxt(device.folder / "machines.csv", delimiter=",", names=True)
        inputs, labels = (
            np.stack([rows[name] for name in names], 1).astype(np.float32)
            for names in (INPUTS, LABELS)
        )
        held_out = np.arange(len(rows)) % 5 == 0
        return (inputs[~held_out], labels[~held_out]), (inputs[held_out], labels[held_out])

    def metrics(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        right = (outputs > 0) == (targets > 0.5)
        return {"all_right": float(right.all(1).mean()), "accuracy": float(right.mean())}
