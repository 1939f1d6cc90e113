"""A pump that wears out: learned on the device where its readings are, which never leave it.

The device's file says where they come from; this task does not care. For a log that grows::

    tasks = ["examples/pump.py:Pump"]

    [data.pump]
    classes = ["ok", "worn"]

    [data.pump.source]
    kind = "csv"
    path = "/var/log/pump.csv"
    features = ["rms", "peak", { name = "celsius", least = -40, most = 150 }]
    label = "state"
    group = "session"

For a topic of the site's own broker, instead::

    [data.pump.source]
    kind = "mqtt"
    host = "sensors.example"
    username = "rengo-pump"
    password_file = "/etc/rengo/sensors.password"
    client_id = "rengo-pump-1"
    topics = ["plant/+/pump"]
    features = ["rms", "peak", { name = "celsius", least = -40, most = 150 }]
    label = "state"
"""

from __future__ import annotations

import numpy as np

from rengo import Device, Linear, Tanh, Task, TrainingSettings

USUAL, SPREAD = np.float32([2.0, 6.0, 45.0]), np.float32([1.0, 3.0, 10.0])


class Pump(Task):
    """Vibration and temperature in, worn or not out."""

    training = TrainingSettings(local_epochs=3, batch_size=16, learning_rate=0.1, momentum=0.9)

    def model(self) -> list[Linear | Tanh]:
        return [Linear(3, 16), Tanh(), Linear(16, 2)]

    def data(self, device: Device) -> tuple:
        # what is trained on and what is held out: an example never changes sides
        return tuple(scaled(part) for part in device.dataset().splits())


def scaled(part: tuple | None) -> tuple | None:
    """Return the readings in steps of their usual spread; the same on every device."""
    return None if part is None else ((part[0] - USUAL) / SPREAD, part[1])
