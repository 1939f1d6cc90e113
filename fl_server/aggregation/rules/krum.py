"""Krum: the one update that is nearest to the others.

Source: Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent",
NeurIPS 2017, section 4, https://arxiv.org/abs/1703.02757.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl_server.aggregation.rules._krum import KrumScores
from fl_server.aggregation.rules.base import Float64s


@dataclass(frozen=True)
class Krum(KrumScores):
    """The update whose nearest others are nearest; all others count for nothing.

    Attributes:
        share: the part of the updates that may be wrong, rounded up.
    """

    def shares(self, gram: Float64s) -> Float64s:
        """Return 1 for the update of the lowest score, the first of several."""
        found = np.zeros(len(gram))
        found[np.argmin(self.scores(gram))] = 1
        return found
