"""FedYogi: Yogi on the server, over the mean update of each round.

Source: Reddi et al., "Adaptive Federated Optimization", ICLR 2021, Algorithm 2,
https://arxiv.org/abs/2003.00295.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from algorithms._adaptive import Adaptive
from algorithms.base import Flat
from runtime.records import Bounds


@dataclass(frozen=True)
class FedYogi(Adaptive):
    """FedAvg whose server steps as Yogi does: as Adam, but step sizes grow back slowly."""

    beta2: Annotated[float, Bounds(least=0, below=1)] = 0.99

    def second_moment(self, v: Flat, squared: Flat) -> Flat:
        """Return ``v - (1 - beta2) * mean^2 * sign(v - mean^2)``."""
        return v - (1 - self.beta2) * squared * np.sign(v - squared)
