"""Multi-Krum: the mean of the updates that are nearest to the others.

Source: Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent",
NeurIPS 2017, section 4 ("Multi-Krum"), https://arxiv.org/abs/1703.02757.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl_server.aggregation.rules._krum import KrumScores
from fl_server.aggregation.rules.base import Float64s, count_of


@dataclass(frozen=True)
class MultiKrum(KrumScores):
    """The mean of all updates but those of the highest scores.

    Attributes:
        share: the part of the updates that may be wrong, rounded up: as many are left out.
    """

    def shares(self, gram: Float64s) -> Float64s:
        """Return the same share for the ``n - f`` updates of the lowest scores."""
        kept = len(gram) - count_of(self.share, len(gram))
        found = np.zeros(len(gram))
        found[np.argsort(self.scores(gram), kind="stable")[:kept]] = 1 / kept
        return found
