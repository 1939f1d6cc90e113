"""FedLC against the paper's loss, and its point: rare classes are not forgotten."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import algorithms
from algorithms.base import Received
from fl_client.engines.base import load_engine
from fl_client.models.layers import Layers, Linear
from fl_client.models.local_round import LocalRound
from runtime.errors import ConfigError
from tests.federation import Quadratic
from tests.unit.algorithms import training
from tests.unit.algorithms.training import CLASSES, Blobs, blobs

LOCAL = Quadratic(np.ones(1), np.ones(1))


@pytest.mark.parametrize("tau", [0.5, 2.0])
def test_the_loss_is_the_papers(tau: float) -> None:
    counts = np.array([9.0, 1.0, 2.0, 40.0])
    made = training.a_pass(training.weights(0))
    state = {"label_counts": {"value": torch.tensor(counts)}}
    found = algorithms.load("fedlc", {"tau": tau}).loss(made, made.w, Received({}), state, LOCAL)
    expected = []
    for f, y in zip(made.outputs.detach().numpy(), made.targets.numpy(), strict=True):
        raised = np.exp(f - tau * counts ** (-1 / 4))
        expected.append(-np.log(raised[y] / raised.sum()))
    assert float(found) == pytest.approx(np.mean(expected), rel=1e-6)


def test_labels_are_counted_by_the_gradient_of_the_heads_bias() -> None:
    seen = []

    class Spy(algorithms.algorithm_class("fedlc")):  # type: ignore[misc]
        def start(self, *given: object) -> object:
            w, state = super().start(*given)
            seen.append(state["label_counts"]["value"].tolist())
            return w, state

    plan = LocalRound(Spy(), Blobs.training, 3, 1, "edge-1")
    update = load_engine("torch", Blobs()).train(
        Blobs().initial_weights(5), blobs({0: 12, 1: 5, 3: 1}), plan
    )
    assert seen == [[12.0, 5.0, 0.0, 1.0]]
    assert update.state == {}


def test_scores_of_absent_classes_fall_less_than_with_fedavg() -> None:
    data, start = blobs({0: 30, 1: 30}), Blobs().initial_weights(5)
    absent = blobs({2: 30, 3: 30})
    plain, calibrated = (
        training.loss(training.after(start, training.train(name, data)), absent)
        for name in ("fedavg", "fedlc")
    )
    assert calibrated < 0.8 * plain


def test_without_margins_a_device_sends_what_fedavgs_sends_exactly() -> None:
    training.assert_trains_as_fedavg("fedlc", tau=0.0)


def test_a_head_without_bias_is_told() -> None:
    class Biasless(Blobs):
        def model(self) -> Layers:
            return [Linear(5, CLASSES, bias=False)]

    plan = LocalRound(algorithms.load("fedlc"), Blobs.training, 3, 1, "edge-1")
    with pytest.raises(ConfigError, match="bias of the model's head, which has none"):
        load_engine("torch", Biasless()).train(Biasless().initial_weights(5), blobs({0: 5}), plan)


def test_targets_that_are_no_classes_are_told() -> None:
    made = training.a_pass(training.weights(0))
    wrong = training.Pass(made.inputs, torch.softmax(made.outputs, 1), made.w)
    state = {"label_counts": {"value": torch.ones(CLASSES)}}
    with pytest.raises(ConfigError, match="class numbers"):
        algorithms.load("fedlc").loss(wrong, made.w, Received({}), state, LOCAL)
