"""LoRA: low-rank adapters are trained and averaged, and the model below them stays as it is.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, equation 3,
https://arxiv.org/abs/2106.09685; averaged by FedAvg, matrix by matrix, as "FedIT" does: Zhang et
al., "Towards Building the Federated GPT", ICASSP 2024, Algorithm 1,
https://arxiv.org/abs/2305.05644.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from algorithms.base import Family, Local, Need
from algorithms.fedavg import FedAvg


@dataclass(frozen=True)
class LoRA(FedAvg):
    """FedAvg of a model's adapters alone.

    A device downloads the whole model once, and from then on its adapters. The mean of both
    matrices of an adapter is not the mean of their products: ``ffalora`` has no such gap.
    """

    family: ClassVar[Family] = "adapters"
    needs: ClassVar[tuple[Need, ...]] = ("adapters",)

    def is_frozen(self, name: str, local: Local) -> bool:
        """Whether it is not a weight of an adapter."""
        return name not in local.adapters
