"""Dropout, the same in every engine."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Masks:
    """The dropout of a step, drawn by numpy in every engine so that engines agree."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._step = 0
        self._generators: dict[int, np.random.Generator] = {}

    def begin(self, step: int) -> None:
        """Go to a step; its masks depend on the seed and its number alone."""
        self._step = step
        self._generators = {}

    def keep(self, layer: int, shape: tuple[int, ...], rate: float) -> NDArray[np.bool_]:
        """Return which values of a layer stay; micro batches draw where the last one stopped."""
        if layer not in self._generators:
            self._generators[layer] = np.random.default_rng([self._seed, self._step, layer])
        drawn = self._generators[layer].random(shape, np.float32)
        return np.greater_equal(drawn, np.float32(rate))
