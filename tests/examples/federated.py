"""A whole run in one process: what the examples are tried with, round by round."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from algorithms.base import UPDATE, Algorithm, Mean, initial
from fl_client.datasets.device import Device
from fl_client.models.local_round import LocalRound
from fl_client.tasks.base import Task
from fl_client.training.participant import Participant
from rengo.site.device_folders import device_folders
from storage.weights import Weights


def train(task: Task, algorithm: Algorithm, *, rounds: int, devices: int, seed: int = 0) -> float:
    """Return the evaluator's accuracy after ``rounds`` rounds on the numpy engine."""
    clients = [
        Participant(task, Device(f"device-{i}", index=i, count=devices, seed=seed), "numpy")
        for i in range(devices)
    ]
    evaluator = Participant(task, Device("evaluator", role="evaluator", seed=seed), "numpy")
    weights = _trained(task, algorithm, clients, rounds, seed)
    plan = LocalRound(algorithm, task.training, seed, rounds, "evaluator")
    return evaluator.evaluate(weights, plan).metrics["accuracy"]


def train_on_folders(
    task: Task, algorithm: Algorithm, data: Path, *, rounds: int
) -> tuple[Weights, dict[str, float]]:
    """Return the weights and what an evaluator measures of them; each device has a folder."""
    folders = device_folders(data)
    clients = [
        Participant(task, Device(path.name, number, len(folders.trainers), folder=path), "numpy")
        for number, path in enumerate(folders.trainers)
    ]
    device = Device("evaluator", role="evaluator", folder=folders.evaluator)
    weights = _trained(task, algorithm, clients, rounds, 0)
    plan = LocalRound(algorithm, task.training, 0, rounds, device.id)
    return weights, Participant(task, device, "numpy").evaluate(weights, plan).metrics


def _trained(
    task: Task, algorithm: Algorithm, clients: Sequence[Participant], rounds: int, seed: int
) -> Weights:
    weights = task.initial_weights(seed)
    state = initial(algorithm, weights.vector, seed)
    for number in range(1, rounds + 1):
        updates = [
            client.train(
                weights,
                LocalRound(algorithm, task.training, seed, number, client.device.id),
            )
            for client in clients
        ]
        mean = np.average(
            [update.vector for update in updates],
            axis=0,
            weights=[update.num_examples for update in updates],
        ).astype(np.float32)
        vector, state = algorithm.aggregate(
            weights.vector, Mean({UPDATE: mean}, updates=len(clients)), state, {}
        )
        weights = Weights(weights.layout, vector, weights.others)
    return weights
