"""Anomalies among handwritten digits: an autoencoder that has never seen one of the digits.

What a model that learned only normal examples cannot reproduce is an anomaly. How badly it must
reproduce it is the threshold, which the devices agree on without showing an example: see
``anomaly_threshold``.

Source of the setting: T. Zhang et al., "Federated Learning for Internet of Things", SenSys 2021,
https://arxiv.org/abs/2106.07976.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fl_client.datasets.device import Device
from fl_client.datasets.public.digits import load_digits
from fl_client.models.settings import TrainingSettings
from fl_client.tasks._shared_data import Array, Pool, SharedDataTask
from runtime.errors import ConfigError


class DigitsAnomaly(SharedDataTask):
    """Digits other than ``anomaly``, to be reproduced; a fifth of them is the evaluators'."""

    objective = "mean_squared_error"
    training = TrainingSettings(local_epochs=10, batch_size=16, learning_rate=4.0, momentum=0.5)
    goals: ClassVar = {"error": "lower", "error_squared": "lower"}
    partition = "dirichlet:0.5"
    example = (64,)
    models = ("autoencoder",)
    anomaly: ClassVar[int] = 0
    held_out: ClassVar[float] = 0.2

    def pool(self, device: Device) -> Pool:
        """Return the normal images, float32 [n, 64], as inputs and as targets."""
        images, labels = load_digits()
        normal = np.random.default_rng(device.seed).permutation(
            np.flatnonzero(labels != self.anomaly)
        )
        cut = round(self.held_out * len(normal))
        test, rest = images[normal[:cut]], images[normal[cut:]]
        return Pool(rest, rest, test, test, labels[normal[cut:]])

    def anomalies(self) -> Array:
        """Return the images that no device learns from, float32 [n, 64]."""
        images, labels = load_digits()
        strange: Array = images[labels == self.anomaly]
        return strange

    def metrics(self, outputs: NDArray[Any], targets: NDArray[Any]) -> dict[str, float]:
        """Return the means of the examples' errors and of their squares."""
        errors = ((outputs - targets) ** 2).mean(1, dtype=np.float64)
        return {"error": float(errors.mean()), "error_squared": float((errors**2).mean())}


def anomaly_threshold(measured: Mapping[str, float], deviations: float = 2.0) -> float:
    """Return the error from which an example is an anomaly, by what all devices measured.

    That is the mean and so many standard deviations of the errors of all devices' normal examples,
    as if they were in one place: the means of the errors and of their squares tell both.

    Args:
        measured: a run's metrics ``error`` and ``error_squared``.

    Raises:
        ConfigError: the run has not measured them.
    """
    try:
        mean, square = measured["error"], measured["error_squared"]
    except KeyError as error:
        raise ConfigError(f"a threshold needs the metric {error}: evaluate on devices") from error
    return mean + deviations * math.sqrt(max(0.0, square - mean * mean))
