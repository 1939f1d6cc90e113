"""Model weights: a layout, one float32 vector and other tensors, stored as safetensors. Pure."""

from __future__ import annotations

from storage.weights.finite import (
    NotFinite,
    next_values,
    require_finite,
    require_same_constants,
)
from storage.weights.layout import Layout, TensorSpec, numpy_type
from storage.weights.model import Array, Vector, Weights
from storage.weights.safetensors import (
    Reader,
    encode_header,
    encode_others,
    read_layout,
    read_safetensors,
    stored_size,
    write_safetensors,
)
from storage.weights.slices import Axis, Places, Slices, Window

__all__ = [
    "Array",
    "Axis",
    "Layout",
    "NotFinite",
    "Places",
    "Reader",
    "Slices",
    "TensorSpec",
    "Vector",
    "Weights",
    "Window",
    "encode_header",
    "encode_others",
    "next_values",
    "numpy_type",
    "read_layout",
    "read_safetensors",
    "require_finite",
    "require_same_constants",
    "stored_size",
    "write_safetensors",
]
