"""The models that a built-in task can have, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fl_client.models.architectures import ARCHITECTURES
from fl_client.models.layers import Layers, Shape

if TYPE_CHECKING:
    import torch

IMAGE_MODELS = ("2nn", "logistic", "cnn", "resnet18")


def build(name: str, example: Shape, classes: int) -> Layers | torch.nn.Module:
    """Return a model for examples of a shape: a list of layers, or a torch module."""
    # these need torch
    if name == "resnet18":
        from fl_client.torch_models.resnet import resnet18  # noqa: PLC0415

        return resnet18(example[0], classes)
    if name == "transformer":
        from fl_client.torch_models.transformer import transformer  # noqa: PLC0415

        return transformer(example[0], classes)
    return ARCHITECTURES[name](example, classes)
