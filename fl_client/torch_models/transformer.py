"""A small decoder for characters, with low-rank adapters of its queries and values.

Source: Vaswani et al., "Attention Is All You Need", NeurIPS 2017, https://arxiv.org/abs/1706.03762,
with the normalisation before each part; Hu et al., "LoRA: Low-Rank Adaptation of Large Language
Models", ICLR 2022, section 4.2, https://arxiv.org/abs/2106.09685, for where the adapters are.
"""

from __future__ import annotations

import torch
from torch import nn

from fl_client.torch_models.layers import AdaptedLinear

_RANK = 4


def transformer(
    length: int, classes: int, *, width: int = 128, blocks: int = 3, heads: int = 4
) -> nn.Module:
    """Return the network: from [batch, length] characters to [batch, classes, length] scores.

    Args:
        length: the most characters of a text.
        classes: how many characters there are.
        width: of each place's vector, a multiple of ``heads``.
    """
    return _Transformer(
        length, classes, width, [_DecoderBlock(width, heads) for _ in range(blocks)]
    )


class _Transformer(nn.Module):
    def __init__(self, length: int, classes: int, width: int, blocks: list[_DecoderBlock]) -> None:
        super().__init__()
        self.characters = nn.Embedding(classes, width)
        self.places = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(width)
        self.scores = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.characters(x.long()) + self.places[: x.shape[1]]
        scores: torch.Tensor = self.scores(self.norm(self.blocks(hidden)))
        return scores.transpose(1, 2)


class _DecoderBlock(nn.Module):
    """Attention to the places before, then two linear layers, each added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self._heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.query = AdaptedLinear(width, width, _RANK)
        self.key = nn.Linear(width, width)
        self.value = AdaptedLinear(width, width, _RANK)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self._attended(self.norm1(x))
        y: torch.Tensor = x + self.down(torch.nn.functional.gelu(self.up(self.norm2(x))))
        return y

    def _attended(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            layer(x).unflatten(-1, (self._heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        found = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        y: torch.Tensor = self.out(found.transpose(1, 2).flatten(-2))
        return y
