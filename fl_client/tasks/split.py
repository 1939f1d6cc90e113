"""What a task's data are: a part to learn from or to evaluate on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

Split: TypeAlias = "tuple[NDArray[Any], NDArray[Any]] | torch.utils.data.Dataset[Any] | None"
"""Inputs and targets as two arrays, or a torch Dataset (torch engine only), or nothing."""
