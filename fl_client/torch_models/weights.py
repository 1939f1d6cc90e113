"""Conversion between a torch module and the global model's weights."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fl_client.torch_models.tensors import to_numpy, to_tensor
from storage.weights import Weights

_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def initial_weights(build: Callable[[], torch.nn.Module], seed: int) -> Weights:
    """Return the weights of a module that ``build`` returns, the same for the same ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tensors = build().state_dict()
    half = {name: "BF16" for name, tensor in tensors.items() if tensor.dtype == torch.bfloat16}
    return Weights.from_arrays(to_numpy(tensors), half)


def state_dict(weights: Weights) -> dict[str, torch.Tensor]:
    """Return what ``load_state_dict`` of the model accepts: every tensor in its own type."""
    arrays = weights.arrays()
    return {
        spec.name: to_tensor(arrays[spec.name]).to(_TYPES[spec.dtype], copy=True)
        for spec in weights.layout.tensors
    }
