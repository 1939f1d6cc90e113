"""Dropout, the same in every engine and on any number of accelerators."""

from __future__ import annotations

import math
from typing import cast

import numpy as np
from numpy.typing import NDArray


class Masks:
    """The dropout of a step, drawn by numpy in every engine so that engines agree."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._step = 0
        self._before, self._after = 0, 0
        self._generators: dict[int, np.random.Generator] = {}

    def begin(self, step: int) -> None:
        """Go to a step; its masks depend on the seed and its number alone."""
        self._step = step
        self._generators = {}

    def among(self, before: int, after: int) -> None:
        """Say how many examples of the piece come before and after those that are masked here.

        An example's mask is then the same, whoever computes the others.
        """
        self._before, self._after = before, after

    def keep(self, layer: int, shape: tuple[int, ...], rate: float) -> NDArray[np.bool_]:
        """Return which values of a layer stay; micro batches draw where the last one stopped.

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
    """Pass over so many float32 draws: each takes half a word, and ``advance`` drops a half."""
    words = cast("np.random.PCG64", generator.bit_generator)
    if count and words.state["has_uint32"]:
        generator.random(dtype=np.float32)
        count -= 1
    if count > 1:
        words.advance(count // 2)
    if count % 2:
        generator.random(dtype=np.float32)
