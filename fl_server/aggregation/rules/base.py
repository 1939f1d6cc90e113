"""The interface of a rule. Pure.

``mean`` needs no single update: it is the sum that is made while updates arrive. The others are of
two kinds, each with one method to define. All of them count every update alike, since a device
could claim any number of examples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from runtime.records import Bounds, require_checked

Float32s: TypeAlias = NDArray[np.float32]
Float64s: TypeAlias = NDArray[np.float64]

Share: TypeAlias = Annotated[float, Bounds(least=0, below=0.5)]
"""The part of a round's updates that may be wrong in any way."""


@dataclass(frozen=True)
class Rule:
    """A rule; its fields are what configuration may set.

    Attributes:
        needs_updates: whether it needs the single updates and not their sum, so that a server keeps
            them until a round's end, and a domain hands on each.
        most_updates: of a round.
    """

    needs_updates: ClassVar[bool] = True
    most_updates: ClassVar[int] = 10_000

    def __post_init__(self) -> None:
        require_checked(self)

    @property
    def least_updates(self) -> int:
        """The fewest updates that a round may have."""
        return 1


@dataclass(frozen=True)
class ByCoordinate(Rule):
    """A rule for which each coordinate stands alone."""

    def combine(self, values: Float32s) -> Float64s:
        """Return what becomes of the updates' values; it does not depend on the updates' order.

        Shapes: values [updates, coordinates]; the result [coordinates].
        """
        raise NotImplementedError


@dataclass(frozen=True)
class ByDistance(Rule):
    """A rule that weighs whole updates by how far they are from each other.

    What it costs grows with the square of the number of updates.
    """

    most_updates: ClassVar[int] = 1_000

    def shares(self, gram: Float64s) -> Float64s:
        """Return the share that each update has in the result, 0 or more and together 1.

        Shapes: gram [updates, updates], the dot products of the updates; the result [updates].
        """
        raise NotImplementedError


def count_of(share: float, updates: int) -> int:
    """Return how many of a round's updates may be wrong: of 20% of 7 it is 2."""
    return math.ceil(share * updates - 1e-9)


def least_for(share: float, spare: int) -> int:
    """Return from how many updates on ``spare`` are left beyond twice the wrong ones, always.

    The number of wrong ones is rounded up, so that 5 may leave what 6 do not.
    """
    found = math.ceil((spare + 2) / (1 - 2 * share))
    while found > 1 and found - 1 - 2 * count_of(share, found - 1) >= spare:
        found -= 1
    return found


def squared_distances(gram: Float64s) -> Float64s:
    """Return the squared distances of all pairs of updates, given their dot products."""
    norms = np.diag(gram)
    found: Float64s = np.maximum(norms[:, None] + norms[None, :] - 2 * gram, 0)
    np.fill_diagonal(found, 0)
    return found
