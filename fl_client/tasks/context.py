"""What a task's own ``local_update`` and ``evaluate`` are called with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fl_client.datasets.device import Device
from fl_client.models.local_round import Evaluation, LocalRound, LocalUpdate
from storage.weights import Vector, Weights


class EngineUser(Protocol):
    """A device's part in a run, which trains and evaluates on the engine where a task asks."""

    device: Device

    def train_on_engine(self, weights: Weights, plan: LocalRound) -> LocalUpdate:
        """Return the engine's update, on the device's training data."""
        ...

    def evaluate_on_engine(self, weights: Weights) -> Evaluation:
        """Return the engine's metrics of ``weights`` on the device's held-out data."""
        ...


@dataclass(frozen=True)
class LocalContext:
    """What local training knows: the participant, the global model and the round."""

    participant: EngineUser
    weights: Weights
    round: LocalRound

    @property
    def device(self) -> Device:
        """The device that trains."""
        return self.participant.device

    def own_weights(self) -> Vector:
        """Return the global weights as a writable vector, so that an update needs no second one.

        It shares memory with the vector that ``local_update`` was given: writing changes both.
        """
        return self.weights.vector

    def random(self) -> np.random.Generator:
        """Return a generator seeded for this device in this round, the same every time."""
        return np.random.default_rng(self.round.local_seed)

    def train(self) -> LocalUpdate:
        """Train with the engine on the device's training data."""
        return self.participant.train_on_engine(self.weights, self.round)

    def evaluate(self) -> Evaluation:
        """Evaluate with the engine on the device's held-out data."""
        return self.participant.evaluate_on_engine(self.weights)
