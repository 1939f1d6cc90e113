"""ResNet-18 with group normalisation, which a federation can average: it keeps no statistics.

Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016,
https://arxiv.org/abs/1512.03385, with the normalisation that Hsieh et al., "The Non-IID Data
Quagmire of Decentralized Machine Learning", ICML 2020, https://arxiv.org/abs/1910.00189, found to
hold where devices' data differ. The first convolution is that for small images: 3 x 3, stride 1.
"""

from __future__ import annotations

import torch
from torch import nn

_GROUPS = 32
_WIDTHS = (64, 128, 256, 512)


def resnet18(channels: int, classes: int) -> nn.Module:
    """Return the network for images of any size; about 11.2 million weights."""
    blocks: list[nn.Module] = []
    inputs = _WIDTHS[0]
    for number, width in enumerate(_WIDTHS):
        blocks += [_Block(inputs, width, 1 if number == 0 else 2), _Block(width, width, 1)]
        inputs = width
    return nn.Sequential(
        nn.Conv2d(channels, _WIDTHS[0], 3, padding=1, bias=False),
        nn.GroupNorm(_GROUPS, _WIDTHS[0]),
        nn.ReLU(),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(_WIDTHS[-1], classes),
    )


class _Block(nn.Module):
    """Two convolutions of 3 x 3, and the input added to what they give."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.GroupNorm(_GROUPS, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.GroupNorm(_GROUPS, outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.GroupNorm(_GROUPS, outputs)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y)) + self.shortcut(x)
        return torch.relu(y)
