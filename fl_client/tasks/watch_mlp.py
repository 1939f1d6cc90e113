"""The smartwatch exercises with a perceptron, for the smallest devices."""

from __future__ import annotations

from fl_client.models.layers import AvgPool1d, Flatten, Layers, Linear, ReLU
from fl_client.models.settings import TrainingSettings
from fl_client.tasks.watch import Watch


class WatchMlp(Watch):
    """As ``watch``, with one hidden layer over means of four samples."""

    training = TrainingSettings(local_epochs=5, learning_rate=0.1, momentum=0.5)

    def model(self) -> Layers:
        """Return a perceptron of 7,591 weights."""
        return [AvgPool1d(4), Flatten(), Linear(150, 48), ReLU(), Linear(48, 7)]
