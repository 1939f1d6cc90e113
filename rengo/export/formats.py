"""A model's weights for other programs. Torch is loaded for its own formats alone."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fl_client.tasks.base import Task
from fl_client.tasks.user_code import initial_weights_of
from rengo.export.onnx_check import OnnxCheck
from rengo.operator.layout_match import fit
from rengo.operator.models import FetchedVersion
from runtime.errors import ConfigError, MissingExtra
from runtime.files import whole_file
from storage.weights import TensorSpec, Weights, numpy_type

FORMATS = {"safetensors": "-export.safetensors", "torch": ".pt", "onnx": ".onnx"}
"""What can be exported, and how such a file's name ends by default."""


def export(
    held: FetchedVersion, kind: str, path: Path, task: Task | None = None
) -> OnnxCheck | None:
    """Write a model in one of ``FORMATS``; return how ONNX was checked.

    Args:
        held: the model, as it was fetched.
        kind: the format.
        path: where to; nothing is left there when it fails.
        task: whose model it is; ONNX needs it, the others take the tensors' types from it.

    Raises:
        Mismatch: it is not the task's model.
        ConfigError: it cannot be written so.
        MissingExtra: what the format needs is not installed.
        RunNotCompleted: onnxruntime gives other outputs than torch.
    """
    weights = held.weights
    if task is not None:
        layout = initial_weights_of(task, 0).layout
        weights = fit(weights, layout, held.name, f"the model of task {task.name}")
    if kind == "safetensors":
        save_safetensors(weights, path)
        return None
    try:
        from rengo.export import torch as torch_export  # noqa: PLC0415  torch is an extra, and slow
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingExtra("torch", "torch") from error
    if kind == "torch":
        torch_export.save_state_dict(weights, path)
        return None
    if task is None:
        raise ConfigError("ONNX is made from the task's model: name the task by --task")
    return torch_export.save_onnx(weights, task, path)


def save_safetensors(weights: Weights, path: Path) -> None:
    """Write the tensors in their own types; in the stored form every float is F32.

    Raises:
        ConfigError: a value has no place in its tensor's own type.
    """
    arrays = weights.arrays()
    ordered = _aligned(weights.layout.tensors)
    blocks = {spec.name: own_bits(arrays[spec.name], spec) for spec in ordered}
    with whole_file(path) as file:
        file.write(_header(weights.layout.tensors, ordered))
        for spec in ordered:
            file.write(np.ascontiguousarray(blocks[spec.name]).reshape(-1).view(np.uint8).data)


def own_bits(array: npt.NDArray[Any], spec: TensorSpec) -> npt.NDArray[Any]:
    """Return a tensor in its own type; BF16 as its bits, rounded to the nearest, ties to even.

    Raises:
        ConfigError: a value has no place in that type.
    """
    if spec.dtype == "BF16":
        bits = array.astype("<f4", copy=False).view("<u4")
        rounded = (bits + (0x7FFF + ((bits >> 16) & 1)).astype("<u4")) >> 16
        # rounding must not turn a NaN into something else
        own = np.where(np.isnan(array), (bits >> 16) | 0x40, rounded).astype("<u2")
        infinite = (own & 0x7FFF) == 0x7F80
    else:
        # a signalling NaN may become a quiet one
        with np.errstate(over="ignore", invalid="ignore"):
            own = array.astype(numpy_type(spec.dtype), copy=False)
        infinite = np.isinf(own) if spec.is_float else np.zeros(own.shape, np.bool_)
    if spec.is_float and bool((infinite & np.isfinite(array)).any()):
        raise ConfigError(f"a value of {spec.name!r} does not fit its type {spec.dtype}")
    return own


def _aligned(tensors: tuple[TensorSpec, ...]) -> list[TensorSpec]:
    # the widest type first, as the safetensors library orders them, so that each tensor is aligned
    return sorted(tensors, key=lambda spec: -numpy_type(spec.dtype).itemsize)


def _header(tensors: tuple[TensorSpec, ...], ordered: list[TensorSpec]) -> bytes:
    places = dict(_places(ordered))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for spec in tensors:
        start, end = places[spec.name]
        header[spec.name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _places(ordered: list[TensorSpec]) -> Iterator[tuple[str, tuple[int, int]]]:
    start = 0
    for spec in ordered:
        end = start + spec.count * numpy_type(spec.dtype).itemsize
        yield spec.name, (start, end)
        start = end
