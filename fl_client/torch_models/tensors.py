"""Conversion between numpy arrays and torch tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


def to_tensor(array: NDArray[Any]) -> torch.Tensor:
    """Return the array as a CPU tensor that shares its memory, or has a copy where it cannot."""
    # torch warns about a read-only array, and takes no mirrored one
    regular = all(stride >= 0 and stride % array.itemsize == 0 for stride in array.strides)
    return torch.from_numpy(array if array.flags.writeable and regular else array.copy())


def to_numpy(named: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Return named tensors, arrays or numbers as arrays, bfloat16 as float32."""
    return {name: _array(value) for name, value in named.items()}


def _array(value: Any) -> NDArray[Any]:
    if isinstance(value, torch.Tensor):
        # numpy has no bfloat16
        wide = value.float() if value.dtype == torch.bfloat16 else value
        return wide.numpy(force=True)
    return np.asarray(value)
