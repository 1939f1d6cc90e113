"""Gaussian noise that the server adds to the mean of clipped updates.

Source: McMahan et al., "Learning Differentially Private Recurrent Language Models", ICLR 2018,
Algorithm 1, https://arxiv.org/abs/1710.06963. The noise is drawn from the run's seed, which every
device is told: **nothing here is a claim of privacy**. There is no accountant, no epsilon, and no
secret; it serves to see what such noise costs a model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import numpy as np

from algorithms.base import UPDATE, Algorithm, Mean
from algorithms.transforms.base import At, Transform
from runtime.records import Bounds


@dataclass(frozen=True)
class Noise(Transform):
    """Noise as large as a multiple of what one device can do to the mean. It keeps nobody's secret.

    Attributes:
        multiplier: the standard deviation of each coordinate's noise, as a multiple of the bound of
            an update's norm times the largest share that one update has in the mean.
    """

    needs_mean: ClassVar[bool] = True

    multiplier: Annotated[float, Bounds(least=0)] = 1.0

    def refusal(self, algorithm: Algorithm, bound: float) -> str:
        """Return what of an update would be without noise, or has no bound."""
        kind = type(algorithm)
        if algorithm.sends != (UPDATE,) or algorithm.reports:
            sent = ", ".join((*algorithm.sends, *algorithm.reports))
            return f"it is added to the update alone, and its clients send more ({sent})"
        if kind.is_private is not Algorithm.is_private or kind.is_frozen is not Algorithm.is_frozen:
            return "it is added to all weights, and its clients send a part of them"
        if algorithm.narrow_widths:
            return "its size is that of a mean of all, and some weights are those of few clients"
        if not math.isfinite(bound):
            return "its size needs a bound of what is sent: put the transform clip last before it"
        return ""

    def combined(self, mean: Mean, at: At) -> Mean:
        """Return the mean with noise that depends on the seed, the round and the place alone."""
        deviation = self.multiplier * at.sensitivity
        if not deviation:
            return mean
        vector = mean.vectors[UPDATE]
        drawn = np.random.default_rng([at.seed, at.round, at.start]).standard_normal(len(vector))
        return replace(mean, vectors={**mean.vectors, UPDATE: vector + deviation * drawn})
