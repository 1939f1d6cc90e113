"""Clipping: no update is longer than a bound.

Source: McMahan et al., "Learning Differentially Private Recurrent Language Models", ICLR 2018,
section 2.2 ("flat clipping"), https://arxiv.org/abs/1710.06963.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from algorithms.base import BLOCK
from algorithms.transforms.base import Transform, Vectors
from runtime.records import Bounds


@dataclass(frozen=True)
class Clip(Transform):
    """A longer update is scaled to the bound; the server refuses one that is longer.

    Attributes:
        norm: the largest Euclidean norm, of all vectors that a device sends together.
    """

    norm: Annotated[float, Bounds(above=0)] = 1.0

    def bounded(self, bound: float) -> float:
        """Return the norm, or what is shorter already."""
        return min(bound, self.norm)

    def outgoing(self, sent: Vectors, state: Vectors) -> tuple[Vectors, Vectors]:
        """Return the vectors times ``min(1, norm / |sent|)``; unchanged where they are shorter."""
        found = norm_of(sent)
        if found <= self.norm:
            return sent, state
        factor = np.float32(self.norm / found)
        return {name: vector * factor for name, vector in sent.items()}, state


def norm_of(vectors: Vectors) -> float:
    """Return the Euclidean norm of all vectors together."""
    return math.hypot(*(norm(vector) for vector in vectors.values()))


def norm(vector: NDArray[np.float32]) -> float:
    """Return the Euclidean norm of a vector, which takes no second one."""
    starts = range(0, vector.size, BLOCK)
    squares = (np.square(vector[at : at + BLOCK], dtype=np.float64).sum() for at in starts)
    return math.sqrt(math.fsum(float(each) for each in squares))
