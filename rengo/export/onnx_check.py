"""What is known of an exported ONNX model once it was compared with torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class OnnxCheck:
    """How far an exported model's outputs are from those of torch.

    Attributes:
        difference: the largest between their outputs, as a part of the largest output where that
            is above 1.
        examples: how many were compared.
        data: where they come from.
        inputs: each input's name, type and shape.
    """

    difference: float
    examples: int
    data: str
    inputs: tuple[str, ...]
