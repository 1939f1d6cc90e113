"""Small classifications, for algorithms with a loss of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import algorithms
from algorithms.base import Arrays
from fl_client.engines.base import load_engine
from fl_client.models.layers import Layers, Linear, ReLU
from fl_client.models.local_round import LocalRound, LocalUpdate
from fl_client.models.settings import TrainingSettings
from fl_client.tasks.base import Task
from storage.weights import Weights

CLASSES = 4


@dataclass(frozen=True)
class Pass:
    """The pass of a batch through a model of two linear layers, in float64."""

    inputs: torch.Tensor
    targets: torch.Tensor
    w: Mapping[str, torch.Tensor]

    @property
    def features(self) -> torch.Tensor:
        return self.inputs @ self.w["body"]

    @property
    def outputs(self) -> torch.Tensor:
        return self.features @ self.w["head"]

    @property
    def loss(self) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(self.outputs, self.targets)

    def at(self, w: Arrays) -> tuple[torch.Tensor, torch.Tensor]:
        other = Pass(self.inputs, self.targets, w)
        return other.outputs.detach(), other.features.detach()


def weights(seed: int, *, trainable: bool = False) -> dict[str, torch.Tensor]:
    generator = np.random.default_rng(seed)
    return {
        name: torch.tensor(generator.standard_normal(shape), requires_grad=trainable)
        for name, shape in (("body", (5, 3)), ("head", (3, CLASSES)))
    }


def a_pass(w: Mapping[str, torch.Tensor], count: int = 6) -> Pass:
    generator = np.random.default_rng(7)
    inputs = torch.tensor(generator.standard_normal((count, 5)))
    return Pass(inputs, torch.tensor(generator.integers(0, CLASSES, count)), w)


class Blobs(Task):
    """Points around the centres of classes."""

    training = TrainingSettings(local_epochs=20, batch_size=8, learning_rate=0.02)

    def model(self) -> Layers:
        return [Linear(5, 16), ReLU(), Linear(16, CLASSES)]


def blobs(counts: Mapping[int, int]) -> tuple[Any, Any]:
    """Return so many examples of each class."""
    centres = 2 * np.random.default_rng(1).standard_normal((CLASSES, 5))
    labels = np.repeat(list(counts), list(counts.values()))
    noise = np.random.default_rng(2).standard_normal((len(labels), 5))
    return (centres[labels] + noise).astype(np.float32), labels


def train(
    name: str,
    data: tuple[Any, Any],
    start: Weights | None = None,
    state: Mapping[str, Any] | None = None,
    settings: Mapping[str, float] | None = None,
) -> LocalUpdate:
    """Return what a device sends and keeps of a round on the torch engine."""
    task = Blobs()
    algorithm = algorithms.load(name, settings)
    plan = LocalRound(algorithm, task.training, 3, 1, "edge-1", state=state or {})
    return load_engine("torch", task).train(start or task.initial_weights(5), data, plan)


def loss(w: Weights, data: tuple[Any, Any]) -> float:
    """Return the mean loss on ``data``."""
    return load_engine("torch", Blobs()).evaluate(w, data).metrics["loss"]


def after(start: Weights, update: LocalUpdate) -> Weights:
    """Return the weights with which a device ended."""
    assert update.vector is not None
    return start.with_vector(start.vector + update.vector)


def assert_trains_as_fedavg(name: str, **settings: float) -> None:
    """Assert that with these settings a device sends what FedAvg's sends, bit for bit."""
    data = blobs({0: 12, 1: 5, 2: 1})
    plain, same = train("fedavg", data), train(name, data, settings=settings)
    assert plain.vector is not None
    assert same.vector is not None
    assert same.vector.tobytes() == plain.vector.tobytes()
    assert same.state == {}
