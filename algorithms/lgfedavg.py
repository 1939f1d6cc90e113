"""LG-FedAvg: personal representations under a shared head.

Source: Liang et al., "Think Locally, Act Globally: Federated Learning with Local and Global
Representations", 2020, Algorithm 1, https://arxiv.org/abs/2001.01523.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from algorithms.base import Family, Local, Need
from algorithms.fedavg import FedAvg


@dataclass(frozen=True)
class LGFedAvg(FedAvg):
    """FedAvg of the head alone: each client trains the layers below it along and keeps them."""

    family: ClassVar[Family] = "personal"
    needs: ClassVar[tuple[Need, ...]] = ("head",)

    def is_private(self, name: str, local: Local) -> bool:
        """Whether it is not a weight of the head."""
        return name not in local.head
