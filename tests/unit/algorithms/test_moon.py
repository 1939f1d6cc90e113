"""MOON against the paper's loss, and its point: features stay near those of the global model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import algorithms
from algorithms.base import Received
from fl_client.models.local_round import LocalUpdate
from storage.weights import Weights
from tests.federation import Array, Quadratic
from tests.unit.algorithms import training
from tests.unit.algorithms.training import Blobs, blobs

LOCAL = Quadratic(np.ones(1), np.ones(1))


@pytest.mark.parametrize(("mu", "tau"), [(1.0, 0.5), (5.0, 0.01)])
def test_the_loss_is_the_papers(mu: float, tau: float) -> None:
    made = training.a_pass(training.weights(0))
    got, previous = training.weights(1), training.weights(2)
    algorithm = algorithms.load("moon", {"mu": mu, "tau": tau})
    state = {"previous": previous}
    found = algorithm.loss(made, made.w, Received(got), state, LOCAL)
    contrast = []
    passes = (made.features, made.at(got)[1], made.at(previous)[1])
    for z, glob, prev in zip(*(each.numpy() for each in passes), strict=True):
        near, far = (z @ each / np.linalg.norm(z) / np.linalg.norm(each) for each in (glob, prev))
        contrast.append(np.log1p(np.exp((far - near) / tau)))
    assert float(found) == pytest.approx(float(made.loss) + mu * np.mean(contrast), rel=1e-12)


def test_features_of_zeros_have_a_gradient() -> None:
    w = training.weights(0, trainable=True)
    made = training.a_pass(w)
    dead = training.Pass(made.inputs * torch.tensor([[0.0], *[[1.0]] * 5]), made.targets, w)
    state = {"previous": training.weights(2)}
    loss = algorithms.load("moon").loss(dead, w, Received(training.weights(1)), state, LOCAL)
    for gradient in torch.autograd.grad(loss, list(w.values())):
        assert torch.isfinite(gradient).all()


def test_a_device_keeps_the_weights_that_it_ended_with_and_uses_them_in_its_next_round() -> None:
    data, start = blobs({0: 12, 1: 5, 2: 1}), Blobs().initial_weights(5)
    first = training.train("moon", data, start)
    ended = training.after(start, first).arrays()
    for name, array in ended.items():
        np.testing.assert_allclose(first.state[f"previous/{name}"], array, atol=1e-6)
    plain = training.train("fedavg", data, start)
    second = training.train("moon", data, start, first.state)
    assert first.vector is not None
    assert second.vector is not None
    assert plain.vector is not None
    # in its first round it has nothing to contrast with
    assert first.vector.tobytes() == plain.vector.tobytes()
    assert np.abs(second.vector - first.vector).max() > 1e-3


def test_features_come_nearer_to_the_global_models_than_to_the_previous_ones() -> None:
    data, start = blobs({0: 30, 1: 30}), Blobs().initial_weights(5)
    first = training.train("moon", data, start)
    plain, moon = (
        training.train("moon", data, start, first.state, {"mu": mu}) for mu in (0.0, 1.0)
    )

    def features(w: Weights) -> Array:
        arrays = w.arrays()
        z = np.maximum(data[0] @ arrays["0.weight"].T + arrays["0.bias"], 0).astype(np.float64)
        return np.asarray(z / np.linalg.norm(z, axis=1, keepdims=True))

    def nearer(update: LocalUpdate) -> float:
        mine = features(training.after(start, update))
        apart = features(start) - features(training.after(start, first))
        return float((mine * apart).sum(1).mean())

    assert nearer(moon) > 0 > nearer(plain)


def test_without_contrast_a_device_sends_what_fedavgs_sends_exactly() -> None:
    training.assert_trains_as_fedavg("moon", mu=0.0)
