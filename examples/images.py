"""A convolutional network on a folder of images; each sub-folder is a class."""

from __future__ import annotations

from rengo import Conv2d, Device, Flatten, Linear, MaxPool2d, ReLU, Task, TrainingSettings

CLASSES = ["circle", "cross", "square"]


class Images(Task):
    """Grey images of any size, scaled to 16 x 16 pixels."""

    training = TrainingSettings(local_epochs=2, batch_size=16, learning_rate=0.1, momentum=0.9)

    def model(self) -> list:
        return [
            Conv2d(1, 8, 3, padding=1),
            ReLU(),
            MaxPool2d(2),
            Conv2d(8, 16, 3, padding=1),
            ReLU(),
            MaxPool2d(2),
            Flatten(),
            Linear(16 * 4 * 4, len(CLASSES)),
        ]

    def data(self, device: Device) -> tuple:
        source = {"kind": "folder", "image_size": [16, 16], "grayscale": True}
        return device.dataset({"source": source, "classes": CLASSES}).splits()
