"""Synthetic(alpha, beta): made-up users whose models and inputs differ as much as one likes.

Source: T. Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, section 5.1
and its published generator, https://arxiv.org/abs/1812.06127.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_client.datasets.public.published import Published

FEATURES = 60
CLASSES = 10
USERS = 30

DATASET = Published(
    name="synthetic",
    summary="made-up users: 60 features, ten classes, models and inputs of each user's own",
    examples=0,
    licence="none is needed: the numbers are drawn where they are used",
)


@dataclass(frozen=True)
class Synthetic:
    """The distribution that users are drawn from.

    Attributes:
        alpha: how much the users' models differ.
        beta: how much their inputs differ.
    """

    alpha: float = 1.0
    beta: float = 1.0

    def user(self, number: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the examples of one user: inputs [n, 60] and classes [n], with n above 50.

        They depend on the seed and the number alone, so that every device makes its own.
        """
        random = np.random.default_rng([seed, number])
        count = int(random.lognormal(4, 2)) + 50
        model_mean = random.normal(0, self.alpha)
        input_mean = random.normal(random.normal(0, self.beta), 1, FEATURES)
        deviation = np.sqrt(np.arange(1, FEATURES + 1) ** -1.2)
        inputs = random.normal(input_mean, deviation, (count, FEATURES))
        weight = random.normal(model_mean, 1, (FEATURES, CLASSES))
        bias = random.normal(model_mean, 1, CLASSES)
        return inputs.astype(np.float32), (inputs @ weight + bias).argmax(1)
