"""Which weights of a torch module are its head, and which normalise."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fl_client.models.parts import ModelParts, adapters_of, head_of

_NORMS = (
    torch.nn.modules.batchnorm._NormBase,
    torch.nn.GroupNorm,
    torch.nn.LayerNorm,
    torch.nn.LocalResponseNorm,
)


def parts_of_module(module: torch.nn.Module, head: Sequence[str] = ()) -> ModelParts:
    """Return the parts of a module; see :func:`fl_client.models.parts.parts_of_layers`."""
    trained = [name for name, weight in module.named_parameters() if weight.requires_grad]
    norms = {
        f"{path}.{name}" if path else name
        for path, layer in module.named_modules()
        if isinstance(layer, _NORMS)
        for name, tensor in layer.state_dict().items()
        if tensor.is_floating_point()
    }
    return ModelParts(head_of(trained, head), frozenset(norms), adapters_of(trained), len(trained))
