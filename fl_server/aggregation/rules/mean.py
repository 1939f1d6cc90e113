"""The weighted mean, as FedAvg has it.

Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
AISTATS 2017, Algorithm 1, https://arxiv.org/abs/1602.05629.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fl_server.aggregation.rules.base import Rule


@dataclass(frozen=True)
class WeightedMean(Rule):
    """Updates weigh as the algorithm says, by their examples unless it says otherwise.

    One device alone can put the mean anywhere.
    """

    needs_updates: ClassVar[bool] = False
    most_updates: ClassVar[int] = 100_000
