"""Synthetic(alpha, beta): what the FedProx paper says of its users."""

from __future__ import annotations

import numpy as np
import pytest

from fl_client.datasets.public.synthetic import CLASSES, FEATURES, Synthetic

USERS = range(40)


def test_a_user_depends_on_the_seed_and_its_number_alone() -> None:
    one, again = (Synthetic().user(3, 1) for _ in range(2))
    assert one[0].tobytes() == again[0].tobytes()
    assert one[1].tobytes() == again[1].tobytes()
    assert one[0][:50].tobytes() != Synthetic().user(4, 1)[0][:50].tobytes()
    assert one[0][:50].tobytes() != Synthetic().user(3, 2)[0][:50].tobytes()


def test_sizes_are_log_normal_above_fifty() -> None:
    sizes = np.array([len(Synthetic().user(number, 0)[1]) for number in range(300)])
    assert sizes.min() >= 50
    # of LogNormal(4, 2) half are below exp(4) = 54.6
    assert np.mean(sizes - 50 < np.exp(4)) == pytest.approx(0.5, abs=0.1)
    assert np.std(np.log(sizes - 50 + 0.5)) == pytest.approx(2, abs=0.35)


def test_the_variance_of_feature_j_is_j_to_the_power_of_minus_1_2() -> None:
    inputs, labels = max((Synthetic().user(number, 0) for number in USERS), key=lambda u: len(u[1]))
    assert inputs.shape == (len(labels), FEATURES)
    assert set(labels.tolist()) <= set(range(CLASSES))
    expected = np.arange(1, FEATURES + 1) ** -1.2
    np.testing.assert_allclose(inputs.var(0), expected, rtol=0.25)


@pytest.mark.parametrize("beta", [0.0, 3.0])
def test_beta_is_the_spread_of_the_users_inputs(beta: float) -> None:
    # a user's mean over 60 features has the deviation sqrt(beta^2 + 1 / 60) among users
    means = [Synthetic(beta=beta).user(number, 0)[0].mean() for number in range(200)]
    assert np.std(means) == pytest.approx(np.hypot(beta, FEATURES**-0.5), rel=0.25)


def test_labels_are_those_of_a_linear_model_of_each_user() -> None:
    inputs, labels = max((Synthetic().user(number, 0) for number in USERS), key=lambda u: len(u[1]))
    design = np.c_[inputs, np.ones(len(inputs))]
    fitted = np.linalg.lstsq(design, np.eye(CLASSES)[labels], rcond=None)[0]
    assert np.mean((design @ fitted).argmax(1) == labels) > 0.8
