"""Top-k: the largest changes are sent, and the others are kept for the next update.

Source: Stich, Cordonnier, Jaggi, "Sparsified SGD with Memory", NeurIPS 2018, Algorithm 1,
https://arxiv.org/abs/1809.07599, per client and round.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray

from algorithms.base import STATISTICS, Algorithm
from algorithms.transforms.base import Transform, Vectors
from runtime.records import Bounds


@dataclass(frozen=True)
class Sparsify(Transform):
    """A part of each vector is sent; what is left out is added to the device's next update.

    Running statistics are sent whole.

    Attributes:
        share: the part of the coordinates that is sent, those of the largest absolute values; 1 is
            all of them.
    """

    codec: ClassVar[str] = "sparse"

    share: Annotated[float, Bounds(above=0, most=1)] = 0.01

    def refusal(self, algorithm: Algorithm, bound: float) -> str:
        """Return that what is left out must be of the same weights in the next round."""
        del bound
        if algorithm.narrow_widths:
            return "what a device leaves out is kept by place, and its part of the model may change"
        return ""

    def bounded(self, bound: float) -> float:
        """Return infinity: what was left out before may make an update longer."""
        return bound if self.share == 1 else math.inf

    def outgoing(self, sent: Vectors, state: Vectors) -> tuple[Vectors, Vectors]:
        """Return the largest values of each vector, and the others."""
        if self.share == 1:
            return sent, {}
        found, rest = dict(sent), dict(state)
        for name in sent.keys() - {STATISTICS}:
            found[name], rest[name] = self._split(sent[name], state.get(name))
        return found, rest

    def _split(
        self, vector: NDArray[np.float32], before: NDArray[np.float32] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        whole = vector if before is None else vector + before
        left_out = vector.size - math.ceil(self.share * vector.size)
        sizes = np.abs(whole)
        # of several at the limit all are sent, so that what is sent does not depend on an order
        is_sent = sizes >= np.partition(sizes, left_out)[left_out]
        zero = np.float32(0)
        return np.where(is_sent, whole, zero), np.where(is_sent, zero, whole)
