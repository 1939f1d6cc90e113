"""FFA-LoRA: of each low-rank adapter one matrix is trained, so that means are of the products.

Source: Sun et al., "Improving LoRA in Privacy-preserving Federated Learning", ICLR 2024, section 4,
https://arxiv.org/abs/2403.12313.
"""

from __future__ import annotations

from dataclasses import dataclass

from algorithms.base import Local
from algorithms.lora import LoRA


@dataclass(frozen=True)
class FFALoRA(LoRA):
    """LoRA with A as it began: the change of a layer is linear in B, the one that is averaged.

    It sends about half of what ``lora`` does.
    """

    def is_frozen(self, name: str, local: Local) -> bool:
        """Whether it is not the matrix B of an adapter."""
        return super().is_frozen(name, local) or "lora_a" in name.lower().split(".")
