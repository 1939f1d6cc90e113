"""Models of the field's papers as lists of layers, for any shape of example and number of classes.

A task names those that it can have; ``mnist-cnn`` is the task ``mnist`` with the model ``cnn``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from fl_client.models.layers import (
    GRU,
    LSTM,
    Conv2d,
    Embedding,
    Flatten,
    Layers,
    Linear,
    MaxPool2d,
    ReLU,
    Reshape,
    Shape,
    Tanh,
    Transpose,
)


def logistic(shape: Shape, classes: int) -> Layers:
    """Return multinomial logistic regression: a convex problem."""
    return [Flatten(), Linear(math.prod(shape), classes)]


def two_layers(shape: Shape, classes: int) -> Layers:
    """Return the perceptron with two hidden layers of 200: "2NN", 199,210 weights on MNIST.

    Source: McMahan et al., AISTATS 2017, section 3, https://arxiv.org/abs/1602.05629.
    """
    hidden = 200
    return [
        Flatten(),
        Linear(math.prod(shape), hidden),
        ReLU(),
        Linear(hidden, hidden),
        ReLU(),
        Linear(hidden, classes),
    ]


def cnn(shape: Shape, classes: int) -> Layers:
    """Return two convolutions of 5 x 5 and a hidden layer of 512: 1,663,370 weights on MNIST.

    Source: as ``two_layers``.
    """
    channels, height, width = shape
    return [
        Reshape(shape),
        Conv2d(channels, 32, 5, padding=2),
        ReLU(),
        MaxPool2d(2),
        Conv2d(32, 64, 5, padding=2),
        ReLU(),
        MaxPool2d(2),
        Flatten(),
        Linear(64 * (height // 4) * (width // 4), 512),
        ReLU(),
        Linear(512, classes),
    ]


def lstm(shape: Shape, classes: int) -> Layers:
    """Return two LSTMs of 256 that foretell the next character at each place of a text.

    Source: as ``two_layers``; the characters there have vectors of 8 numbers too.
    """
    del shape
    return [
        Embedding(classes, 8),
        LSTM(8, 256, sequence=True),
        LSTM(256, 256, sequence=True),
        Linear(256, classes),
        Transpose(),
    ]


def gru(shape: Shape, classes: int) -> Layers:
    """Return one GRU of 64 that foretells the next character: small enough for a Raspberry Pi."""
    del shape
    return [Embedding(classes, 8), GRU(8, 64, sequence=True), Linear(64, classes), Transpose()]


def autoencoder(shape: Shape, classes: int) -> Layers:
    """Return a perceptron that squeezes an example into an eighth of its size and restores it."""
    del classes
    size = math.prod(shape)
    half, few = max(1, size // 2), max(1, size // 8)
    return [
        Flatten(),
        Linear(size, half),
        Tanh(),
        Linear(half, few),
        Linear(few, half),
        Tanh(),
        Linear(half, size),
    ]


ARCHITECTURES: dict[str, Callable[[Shape, int], Layers]] = {
    "logistic": logistic,
    "2nn": two_layers,
    "cnn": cnn,
    "lstm": lstm,
    "gru": gru,
    "autoencoder": autoencoder,
}
