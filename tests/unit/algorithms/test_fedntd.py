"""FedNTD against the paper's loss, and its point: absent classes are not forgotten."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import algorithms
from algorithms.base import Received
from tests.federation import Quadratic
from tests.unit.algorithms import training
from tests.unit.algorithms.training import CLASSES, Blobs, blobs

LOCAL = Quadratic(np.ones(1), np.ones(1))


def softmax(scores: np.ndarray[tuple[int], np.dtype[np.float64]], tau: float) -> list[float]:
    raised = np.exp(scores / tau)
    return list(raised / raised.sum())


@pytest.mark.parametrize(("beta", "tau"), [(1.0, 1.0), (0.3, 3.0)])
def test_the_loss_is_the_papers(beta: float, tau: float) -> None:
    made, got = training.a_pass(training.weights(0)), training.weights(1)
    algorithm = algorithms.load("fedntd", {"beta": beta, "tau": tau})
    found = algorithm.loss(made, made.w, Received(got), {}, LOCAL)
    divergence = []
    mine, theirs = made.outputs.numpy(), made.at(got)[0].numpy()
    for own, other, y in zip(mine, theirs, made.targets.numpy(), strict=True):
        q, p = (softmax(np.delete(each, y), tau) for each in (own, other))
        divergence.append(sum(b * np.log(b / a) for a, b in zip(q, p, strict=True)))
    expected = float(made.loss) + beta * tau**2 * np.mean(divergence)
    assert float(found) == pytest.approx(expected, rel=1e-12)


def test_labels_that_are_left_out_have_no_divergence_and_pixels_are_examples() -> None:
    generator, got = np.random.default_rng(4), training.weights(1)
    flat = training.a_pass(training.weights(0))
    algorithm = algorithms.load("fedntd")

    class Pixels(training.Pass):
        """The same scores as pictures of 1 x 2, of which two pixels have no label."""

        @property
        def outputs(self) -> torch.Tensor:
            return as_picture(flat.outputs)

        @property
        def loss(self) -> torch.Tensor:
            return flat.loss

        def at(self, w: object) -> tuple[torch.Tensor, torch.Tensor]:
            return as_picture(flat.at(got)[0]), torch.zeros(())

    def as_picture(scores: torch.Tensor) -> torch.Tensor:
        noise = torch.tensor(generator.standard_normal((2, CLASSES)))
        return torch.cat([scores, noise]).reshape(4, 1, 2, CLASSES).movedim(-1, 1)

    labels = torch.cat([flat.targets, torch.tensor([-100, -100])]).reshape(4, 1, 2)
    made = Pixels(flat.inputs, labels, flat.w)
    found, expected = (
        algorithm.loss(each, flat.w, Received(got), {}, LOCAL) for each in (made, flat)
    )
    assert float(found) == pytest.approx(float(expected), rel=1e-12)


def test_classes_that_a_device_lacks_are_forgotten_less_than_with_fedavg() -> None:
    everybody, here, absent = (
        blobs(dict.fromkeys(classes, 30)) for classes in (range(CLASSES), (0, 1), (2, 3))
    )
    start = Blobs().initial_weights(5)
    for _ in range(6):
        start = training.after(start, training.train("fedavg", everybody, start))
    plain, distilled = (
        training.loss(training.after(start, update), absent) - training.loss(start, absent)
        for update in (
            training.train("fedavg", here, start),
            training.train("fedntd", here, start, settings={"beta": 10.0}),
        )
    )
    assert distilled < 0.6 * plain


def test_without_distillation_a_device_sends_what_fedavgs_sends_exactly() -> None:
    training.assert_trains_as_fedavg("fedntd", beta=0.0)
