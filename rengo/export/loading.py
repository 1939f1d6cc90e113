"""A model file as arrays or as torch tensors, for whoever wants to use what was trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from runtime.errors import ConfigError, Corrupt, MissingExtra
from storage.weights import Array, Weights, read_safetensors

if TYPE_CHECKING:
    import torch


def load_model(path: str | Path) -> dict[str, Array]:
    """Return a model's arrays by name, in the order of its layers.

    Shapes: as the task declared them. Weights are float32, whatever type the file has them in;
    integer and boolean tensors (counters, masks) keep theirs.

    Raises:
        ConfigError: there is no such file, or it is no safetensors file; says what is wrong.
    """
    return {name: np.array(array) for name, array in _read(path).arrays().items()}


def load_state_dict(path: str | Path) -> Mapping[str, torch.Tensor]:
    """Return a model as a torch state dict: ``module.load_state_dict(load_state_dict(path))``.

    Each tensor has its own type, bfloat16 and float16 included.

    Raises:
        ConfigError: there is no such file, or it is no safetensors file; says what is wrong.
        MissingExtra: torch is not installed.
    """
    weights = _read(path)
    try:
        from fl_client.torch_models.weights import state_dict  # noqa: PLC0415  slow, an extra
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingExtra("torch", "torch") from error
    return state_dict(weights)


def _read(path: str | Path) -> Weights:
    try:
        return read_safetensors(Path(path))
    except Corrupt as error:
        raise ConfigError(f"{error}; `rengo models get` fetches a model again") from error
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror}; `rengo models get` fetches a model"
        ) from error
