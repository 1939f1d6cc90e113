"""Seven shoulder exercises told apart by a smartwatch: 6 axes at 50 Hz, ten persons.

The natural federated case, one device per person. The recordings are those of ``seglearn`` 1.2.5:
D. Burns et al., "Shoulder physiotherapy exercise recognition: machine learning the inertial
signals from a smartwatch", 2018, https://arxiv.org/abs/1802.01489 (BSD licence).
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from fl_client.datasets.device import Device
from fl_client.datasets.public.watch import PERSONS, Recording, recordings
from fl_client.models.layers import Conv1d, GlobalAvgPool, Layers, Linear, MaxPool1d, ReLU
from fl_client.models.settings import TrainingSettings
from fl_client.tasks.base import Task
from fl_client.tasks.split import Split
from runtime.errors import ConfigError

# acceleration in g, turn rate in rad/s; not statistics, on which devices would have to agree
_SCALE = np.array([1, 1, 1, 0.5, 0.5, 0.5], np.float32)


class Watch(Task):
    """One person's windows of two seconds; a small convolution along the time.

    The seed determines who is held out for the evaluators. With more devices than persons, two
    devices can have the same person, but never the same windows. FedAvg over nine persons has an
    accuracy of 0.84 on the tenth after 20 rounds (mean of seeds 0 to 2; the perceptron 0.74).
    """

    training = TrainingSettings(local_epochs=5, learning_rate=0.1, momentum=0.9)
    held_out_persons: ClassVar[int] = 1
    window: ClassVar[int] = 100
    step: ClassVar[int] = 50

    def model(self) -> Layers:
        """Return two convolutions of 2,999 weights."""
        return [
            Conv1d(6, 16, 9, stride=2),
            ReLU(),
            MaxPool1d(2),
            Conv1d(16, 24, 5),
            ReLU(),
            GlobalAvgPool(),
            Linear(24, 7),
        ]

    def data(self, device: Device) -> tuple[Split, Split]:
        """Return a trainer's windows (the end of each recording held out) or those of others."""
        if device.partition not in ("", "natural"):
            raise ConfigError(
                f"task {self.name}: its recordings are divided by persons, which is the partition "
                f"natural, and not by {device.partition!r}"
            )
        order = (np.random.default_rng(device.seed).permutation(PERSONS) + 1).tolist()
        unseen, persons = order[: self.held_out_persons], order[self.held_out_persons :]
        if device.role == "evaluator":
            found = [recordings(person, device.folder) for person in unseen]
            return None, self._windows([one for recorded in found for one in recorded])
        recorded = recordings(persons[device.index % len(persons)], device.folder)
        sharing = range(device.index % len(persons), device.count, len(persons))
        part = slice(sharing.index(device.index), None, len(sharing))
        first = [(samples[: _cut(samples)], label) for samples, label in recorded]
        last = [(samples[_cut(samples) :], label) for samples, label in recorded]
        return self._windows(first, part), self._windows(last, part)

    def _windows(self, recorded: list[Recording], part: slice = slice(None)) -> Split:
        """Return float32 [windows, 6, time] and the exercises, None if all is too short."""
        views, labels = [], []
        for samples, label in recorded:
            if len(samples) >= self.window:
                views.append(sliding_window_view(samples, self.window, 0)[:: self.step])
                labels.append(np.full(len(views[-1]), label, np.int64))
        if not views or not len(np.concatenate(labels)[part]):
            return None
        inputs = np.concatenate(views)[part] * _SCALE[:, None]
        return inputs, np.concatenate(labels)[part]


def _cut(samples: NDArray[Any]) -> int:
    return len(samples) * 9 // 10
