"""Fits given weights to the layout of a task's model, or lists the differences. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.errors import Mismatch
from storage.weights import Layout, TensorSpec, Weights, numpy_type

Array = npt.NDArray[Any]
_MAX_LINES = 200
_F16_MAX = float(np.finfo(np.float16).max)


def fit(weights: Weights, layout: Layout, what: str, model: str) -> Weights:
    """Return the weights in the model's order and with its types.

    A float type converts to any other; an integer type to another one that holds its values.

    Args:
        weights: in any order.
        layout: of the model.
        what: names the weights in the error.
        model: names the model in the error.

    Raises:
        Mismatch: with a line for each tensor that is missing, unknown, or of another shape or type.
    """
    if weights.layout == layout:
        return weights
    arrays = weights.arrays()
    lines = list(_differences(weights.layout, layout, arrays))
    if lines:
        more = len(lines) - _MAX_LINES
        shown = [*lines[:_MAX_LINES], *([f"and {more} more"] if more > 0 else [])]
        raise Mismatch(f"{what} does not fit {model}", shown)
    vector = np.empty(layout.size, np.float32)
    for name, where in layout.offsets.items():
        vector[where] = arrays[name].reshape(-1)
    others = {spec.name: _as(arrays[spec.name], spec) for spec in layout.others}
    return Weights(layout, vector, others)


def _differences(given: Layout, layout: Layout, arrays: Mapping[str, Array]) -> Iterator[str]:
    found = {spec.name: spec for spec in given.tensors}
    wanted = {spec.name: spec for spec in layout.tensors}
    for name, spec in wanted.items():
        if name not in found:
            yield f"missing     {_text(spec)}"
    for name, spec in found.items():
        if name not in wanted:
            yield f"unexpected  {_text(spec)}"
    for name, spec in wanted.items():
        if name in found and found[name].shape != spec.shape:
            yield f"shape       {_text(found[name])}, the model has {_kind(spec)}"
        elif name in found and not _can_be(found[name], spec, arrays[name]):
            yield f"type        {_text(found[name])}, the model has {_kind(spec)}"


def _can_be(given: TensorSpec, wanted: TensorSpec, array: Array) -> bool:
    if given.dtype == wanted.dtype:
        return True
    if given.is_float and wanted.is_float:
        return wanted.dtype != "F16" or not bool(
            (np.abs(array) > _F16_MAX)[np.isfinite(array)].any()
        )
    if given.is_float or wanted.is_float or "BOOL" in {given.dtype, wanted.dtype}:
        return False
    limits = np.iinfo(numpy_type(wanted.dtype))
    return not array.size or (int(array.min()) >= limits.min and int(array.max()) <= limits.max)


def _as(array: Array, spec: TensorSpec) -> Array:
    return array.astype(numpy_type(spec.dtype), copy=False)


def _text(spec: TensorSpec) -> str:
    # a name in an untrusted file must not hold control characters of a terminal
    name = spec.name if spec.name.isprintable() else repr(spec.name)
    return f"{name}: {_kind(spec)}"


def _kind(spec: TensorSpec) -> str:
    return f"{spec.dtype} {list(spec.shape)}"
