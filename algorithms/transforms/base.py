"""The interface of a transform, in two halves as an algorithm has them. Pure.

The device's half changes what is sent, after the algorithm's client half has ended. The server's
changes the means, before the algorithm's server half begins. Vectors are flat, each as long as the
model; the change of running statistics is one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from algorithms.base import Algorithm, Mean
from runtime.records import require_checked

Vectors: TypeAlias = Mapping[str, NDArray[np.float32]]
"""Name of what is sent to its values."""


@dataclass(frozen=True)
class At:
    """Where and of what the means of a block are.

    Attributes:
        seed: the run's.
        round: its number, from 1 on.
        start: where in the vectors the block begins, a multiple of ``algorithms.base.BLOCK``.
        sensitivity: how far one update can move the mean: the largest norm of an update times the
            largest share that one has in the mean.
    """

    seed: int
    round: int
    start: int
    sensitivity: float


@dataclass(frozen=True)
class Transform:
    """A transform that changes nothing; its fields are what configuration may set.

    No method changes what it is given.

    Attributes:
        codec: how updates are written that come out of it; "" where it does not matter.
        needs_mean: whether it makes sense of a weighted mean alone.
    """

    codec: ClassVar[str] = ""
    needs_mean: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_checked(self)

    def refusal(self, algorithm: Algorithm, bound: float) -> str:
        """Return why it does not go with an algorithm, "" where it does.

        Args:
            bound: the largest norm that an update can have behind all transforms of the run.
        """
        del algorithm, bound
        return ""

    def bounded(self, bound: float) -> float:
        """Return the largest norm of what is sent, all vectors together, given that before."""
        return bound

    def outgoing(self, sent: Vectors, state: Vectors) -> tuple[Vectors, Vectors]:
        """Return what a device sends instead, and what it keeps once that was accepted.

        Args:
            sent: what the algorithm or the transform before sends, finite.
            state: what it kept of the last accepted update; empty at first.
        """
        return sent, state

    def combined(self, mean: Mean, at: At) -> Mean:
        """Return the means that the server goes on with, for one block."""
        del at
        return mean
