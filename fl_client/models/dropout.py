"""Dropout, the same in every engine and on any number of accelerators."""

from __future__ import annotations

import math
from typing import cast

import numpy as np
from numpy.typing import NDArray


class DropoutMasks:
    """Which values dropout keeps in a step; drawn by numpy in every engine, so that they agree."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._step = 0
        self._before, self._after = 0, 0
        self._generators: dict[int, np.random.Generator] = {}

    def begin(self, step: int) -> None:
        """Begin a step; its masks depend on the seed and its number alone."""
        self._step = step
        self._generators = {}

    def set_position(self, before: int, after: int) -> None:
        """Set how many examples of the micro batch come before and after those masked here.

        An example's mask is then the same, wherever the others are computed.
        """
        self._before, self._after = before, after

    def mask(self, layer: int, shape: tuple[int, ...], rate: float) -> NDArray[np.bool_]:
        """Return which values of a layer are kept; a micro batch draws where the last one ended.

        Shapes: the first axis counts the examples.
        """
        if layer not in self._generators:
            self._generators[layer] = np.random.default_rng([self._seed, self._step, layer])
        generator, size = self._generators[layer], math.prod(shape[1:])
        _skip(generator, self._before * size)
        drawn = generator.random(shape, np.float32)
        _skip(generator, self._after * size)
        return np.greater_equal(drawn, np.float32(rate))


def _skip(generator: np.random.Generator, count: int) -> None:
    """Skip so many float32 draws: each takes half a word, and ``advance`` skips whole words."""
    words = cast("np.random.PCG64", generator.bit_generator)
    if count and words.state["has_uint32"]:
        generator.random(dtype=np.float32)
        count -= 1
    if count > 1:
        words.advance(count // 2)
    if count % 2:
        generator.random(dtype=np.float32)
