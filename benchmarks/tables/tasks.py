"""The tasks of the tables that Rengo does not bring: smaller data, papers' models, partial work."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from fl_client.datasets.device import Device
from fl_client.models.local_round import Evaluation, LocalUpdate
from fl_client.tasks._shared_data import Pool, SharedDataTask
from fl_client.tasks.context import LocalContext
from fl_client.tasks.digits import Digits
from fl_client.tasks.fashion_mnist import FashionMnist
from fl_client.tasks.mnist import Mnist
from fl_client.tasks.synthetic import SyntheticUsers
from rengo import (
    BatchNorm,
    Conv2d,
    Flatten,
    Linear,
    MaxPool2d,
    ReLU,
    Reshape,
    Task,
    TrainingSettings,
)
from storage.weights import Vector


class Fewer(SharedDataTask):
    """A data set of which only some examples are used, the same for all devices of one seed."""

    kept: ClassVar[int] = 12_000
    kept_of_evaluators: ClassVar[int] = 2_000

    def pool(self, device: Device) -> Pool:
        """Return a random part of the data set, in random order."""
        whole = super().pool(device)
        random = np.random.default_rng(device.seed)
        own = random.permutation(len(whole.labels))[: self.kept]
        seen = random.permutation(len(whole.test_targets))[: self.kept_of_evaluators]
        return Pool(
            whole.inputs[own],
            whole.targets[own],
            whole.test_inputs[seen],
            whole.test_targets[seen],
            whole.labels[own],
        )


class FewerMnist(Fewer, Mnist):
    """A fifth of MNIST."""


class FewerFashion(Fewer, FashionMnist):
    """A tenth of Fashion-MNIST."""

    kept = 6_000


class NarrowMnist(FewerMnist):
    """The same with the model of a client of width 1/16, as a whole model."""

    def model(self) -> list[Any]:
        """Return 2NN with 13 units in place of 200."""
        return [Flatten(), Linear(784, 13), ReLU(), Linear(13, 13), ReLU(), Linear(13, 10)]


class FairMnist(Fewer, Mnist):
    """A quarter of MNIST, a quarter of each client's part held out."""

    kept = 16_000
    local_held_out = 0.25


class PersonalFashion(Fewer, FashionMnist):
    """A twentieth of Fashion-MNIST, a quarter of each client's part held out; four layers."""

    kept = 3_000
    local_held_out = 0.25

    def model(self) -> list[Any]:
        """Return two convolutions and two dense layers, with a quarter of the paper's channels."""
        return [
            Reshape(self.example),
            Conv2d(1, 8, 5),
            ReLU(),
            MaxPool2d(2),
            Conv2d(8, 16, 5),
            ReLU(),
            MaxPool2d(2),
            Flatten(),
            Linear(16 * 4 * 4, 128),
            ReLU(),
            Linear(128, self.classes),
        ]


class Turned(Fewer, Mnist):
    """MNIST for clusters of devices: one hidden layer, as in the IFCA paper."""

    kept = 8_000
    local_held_out = 0.25

    def model(self) -> list[Any]:
        """Return a perceptron with one hidden layer of 200."""
        return [Flatten(), Linear(784, 200), ReLU(), Linear(200, self.classes)]


class Domains(Digits):
    """The digits, seen differently by each device; a small network with batch normalisation."""

    training = TrainingSettings(local_epochs=1, batch_size=16, learning_rate=0.1)
    local_held_out = 0.25

    def model(self) -> list[Any]:
        """Return one convolution with batch normalisation, and two dense layers with one."""
        return [
            Reshape((1, 8, 8)),
            Conv2d(1, 16, 3, padding=1),
            BatchNorm(16),
            ReLU(),
            MaxPool2d(2),
            Flatten(),
            Linear(16 * 4 * 4, 32),
            BatchNorm(32),
            ReLU(),
            Linear(32, 10),
        ]


class Stragglers(SyntheticUsers):
    """Synthetic users of whom nine in ten do from 1 to 19 epochs in place of all 20.

    Source: T. Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, section
    5.2 and its published code, https://arxiv.org/abs/1812.06127.
    """

    name = "stragglers"
    share: ClassVar[float] = 0.9

    def local_update(self, weights: Vector, context: LocalContext) -> LocalUpdate:
        """Train for as many epochs as are drawn for this client in this round."""
        plan = context.round
        random, whole = context.random(), plan.settings.local_epochs
        epochs = int(random.integers(1, whole)) if random.random() < self.share else whole
        partial = replace(plan, settings=replace(plan.settings, local_epochs=epochs))
        return context.participant.train_on_engine(context.weights, partial)


class UnequalSteps(Task):
    """Least squares on clients of one example each, some of which have it more often than others.

    A client with it 48 times takes three steps of 16, each along its whole gradient. The mean loss
    over all examples has one minimum, which is known; ``excess`` is how far above it a model is.
    """

    objective = "mean_squared_error"
    training = TrainingSettings(batch_size=16, learning_rate=0.02)
    goals: ClassVar = {"loss": "lower"}
    features: ClassVar[int] = 4

    def model(self) -> list[Any]:
        """Return a linear model."""
        return [Linear(self.features, 1, bias=False)]

    def data(self, device: Device) -> tuple[Any, Any]:
        """Return a client's examples; an evaluator has those of all clients."""
        if device.role == "trainer":
            return self.examples_of(device.index, device.seed), None
        everyone = [self.examples_of(number, device.seed) for number in range(device.count)]
        inputs, targets = (np.concatenate(each) for each in zip(*everyone, strict=True))
        return None, (inputs, targets)

    def examples_of(self, number: int, seed: int) -> tuple[Any, Any]:
        """Return a client's inputs and targets, float32."""
        random = np.random.default_rng([seed, number])
        times = 16 * (1 + number % 5)
        inputs = np.repeat(random.normal(0, 1, (1, self.features)), times, axis=0)
        targets = np.repeat(random.normal(0, 2, (1, 1)), times, axis=0)
        return inputs.astype(np.float32), targets.astype(np.float32)

    def evaluate(self, weights: Vector, context: LocalContext) -> Evaluation:
        """Return the loss, and how far it is above the least one."""
        count, metrics = context.evaluate()
        _, (inputs, targets) = self.data(context.device)
        found, *_ = np.linalg.lstsq(inputs.astype(np.float64), targets, rcond=None)
        least = float(((inputs @ found - targets) ** 2).mean())
        return Evaluation(count, {**metrics, "excess": metrics["loss"] - least})
