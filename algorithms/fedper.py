"""FedPer: shared base layers under a personal head.

Source: Arivazhagan et al., "Federated Learning with Personalization Layers", 2019, Algorithms 1
and 2, https://arxiv.org/abs/1912.00818.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from algorithms.base import Family, Local, Need
from algorithms.fedavg import FedAvg


@dataclass(frozen=True)
class FedPer(FedAvg):
    """FedAvg of all but the head, which each client trains along and keeps."""

    family: ClassVar[Family] = "personal"
    needs: ClassVar[tuple[Need, ...]] = ("head",)

    def is_private(self, name: str, local: Local) -> bool:
        """Whether it is a weight of the head."""
        return name in local.head
