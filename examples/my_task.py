"""Two moons: tell two interleaved half circles apart. Every device has points of its own."""

from __future__ import annotations

import numpy as np

from rengo import Device, Linear, Tanh, Task, TrainingSettings


class MyTask(Task):
    """A model and a device's data; everything else keeps its default."""

    training = TrainingSettings(local_epochs=5, learning_rate=0.3, momentum=0.9)

    def model(self) -> list[Linear | Tanh]:
        return [Linear(2, 32), Tanh(), Linear(32, 2)]

    def data(self, device: Device) -> tuple:
        if device.role == "evaluator":
            return None, moons(400, [device.seed])
        # A real task reads device.folder, or a sensor. Here each device draws mostly one moon.
        share = 0.85 if device.index % 2 else 0.15
        points = moons(250, [device.seed, 1 + device.index], share)
        return tuple(part[:200] for part in points), tuple(part[200:] for part in points)


def moons(count: int, seed: list[int], share: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Return points and their moon, 0 or 1; ``share`` of them lie on moon 1."""
    random = np.random.default_rng(seed)
    labels = (random.random(count) < share).astype(np.int64)
    angle = random.uniform(0, np.pi, count)
    upper = np.stack([np.cos(angle), np.sin(angle)], 1)
    lower = np.stack([1 - np.cos(angle), 0.5 - np.sin(angle)], 1)
    points = np.where(labels[:, None] == 1, lower, upper) + random.normal(0, 0.1, (count, 2))
    return points.astype(np.float32), labels
