"""Tasks whose numbers are large: raw readings, millions of rows, and updates that cannot count."""

from __future__ import annotations

from typing import Any

import numpy as np

from rengo import Device, Linear, Task, TrainingSettings

FEATURES, ROWS, HELD_OUT = 8, 400, 200
MILLIONS = 1_500_000


def readings(count: int, seed: list[int]) -> tuple[Any, Any]:
    """Return raw readings around 128 with deviation 90, and whether a weighted sum is high."""
    random = np.random.default_rng(seed)
    values = random.normal(128, 90, (count, FEATURES)).astype(np.float32)
    rule = np.random.default_rng(7).normal(size=FEATURES)
    return values, ((values - 128) @ rule > 0).astype(np.int64)


class _OfReadings(Task):
    def data(self, device: Device) -> tuple[Any, Any]:
        held_out = readings(HELD_OUT, [device.seed, 1000 + device.index])
        if device.role == "evaluator":
            return None, held_out
        return readings(ROWS, [device.seed, device.index]), held_out


class RawSensors(_OfReadings):
    """A torch model that normalises by itself: its running variances move by thousands."""

    training = TrainingSettings(local_epochs=2, learning_rate=0.1, momentum=0.9)

    def model(self) -> Any:
        from torch import nn  # noqa: PLC0415  torch tasks alone need it

        return nn.Sequential(nn.BatchNorm1d(FEATURES), nn.Linear(FEATURES, 2))


class _OfScaledReadings(_OfReadings):
    training = TrainingSettings(local_epochs=2, learning_rate=0.5)

    def model(self) -> list[Linear]:
        return [Linear(FEATURES, 2)]

    def data(self, device: Device) -> tuple[Any, Any]:
        train, held_out = super().data(device)
        return train and _scaled(train), _scaled(held_out)


class MillionsOfRows(_OfScaledReadings):
    """Reports as many examples as a device with a long log has, and trains on a few of them."""

    def local_update(self, weights: Any, context: Any) -> Any:
        return super().local_update(weights, context)._replace(num_examples=MILLIONS)


class ManyRows(_OfScaledReadings):
    """Trains on as many: for a look by hand, ``rengo demo --task FILE:ManyRows``."""

    training = TrainingSettings(local_epochs=1, batch_size=4096, learning_rate=0.5)

    def data(self, device: Device) -> tuple[Any, Any]:
        if device.role == "evaluator":
            return super().data(device)
        return _scaled(readings(MILLIONS, [device.seed, device.index])), None


class Diverged(_OfScaledReadings):
    """Each update has a parameter that is no number, another one each time."""

    def local_update(self, weights: Any, context: Any) -> Any:
        update = super().local_update(weights, context)
        update.vector[context.device.index] = np.nan
        return update


class TooManyRows(_OfScaledReadings):
    """Reports more examples than one device may."""

    def local_update(self, weights: Any, context: Any) -> Any:
        return super().local_update(weights, context)._replace(num_examples=(1 << 40) + 1)


def _scaled(split: tuple[Any, Any]) -> tuple[Any, Any]:
    return (split[0] - 128) / 90, split[1]
