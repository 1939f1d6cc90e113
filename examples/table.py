"""Classes from a table: the kind of a flower from two columns of a Parquet file."""

from __future__ import annotations

from rengo import Device, LayerNorm, Linear, ReLU, Task, TrainingSettings

SOURCE = {
    "kind": "parquet",
    "features": ["length", {"name": "width", "least": 0, "most": 10}],
    "label": "kind",
}


class Flowers(Task):
    """The length and the width of a petal in, one of three kinds out."""

    training = TrainingSettings(local_epochs=3, batch_size=16, learning_rate=0.05, momentum=0.9)

    def model(self) -> list[Linear | ReLU | LayerNorm]:
        return [Linear(2, 16), LayerNorm((16,)), ReLU(), Linear(16, 3)]

    def data(self, device: Device) -> tuple:
        classes = ["setosa", "versicolor", "virginica"]
        return device.dataset({"source": SOURCE, "classes": classes, "held_out": 0.25}).splits()
