"""FedBN: each client keeps its own normalisation layers.

Source: Li et al., "FedBN: Federated Learning on Non-IID Features via Local Batch Normalization",
ICLR 2021, Algorithm 1, https://arxiv.org/abs/2102.07623.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from algorithms.base import Family, Local, Need
from algorithms.fedavg import FedAvg


@dataclass(frozen=True)
class FedBN(FedAvg):
    """FedAvg of all but the normalisation layers, for clients whose inputs differ in kind."""

    family: ClassVar[Family] = "personal"
    needs: ClassVar[tuple[Need, ...]] = ("norms",)

    def is_private(self, name: str, local: Local) -> bool:
        """Whether it is a weight or a statistic of a normalisation layer."""
        return name in local.norms
