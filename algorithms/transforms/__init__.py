"""What is done to updates around any algorithm: one transform in each file, by the file's name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from algorithms.transforms.base import Transform
from runtime.listing import ClassListing

TRANSFORMS = ClassListing(__name__, "transform", Transform)


def load_all(chosen: Sequence[Mapping[str, Any]]) -> tuple[Transform, ...]:
    """Return the transforms of a run in their order.

    Args:
        chosen: the name of each as ``name``, with its settings beside it.

    Raises:
        ConfigError: there is no such one, or it refuses a setting.
    """
    return tuple(
        TRANSFORMS.load(str(each.get("name", "")), {k: v for k, v in each.items() if k != "name"})
        for each in chosen
    )


def bound_of(transforms: Sequence[Transform]) -> float:
    """Return the largest norm that an update can have behind them, infinite without a bound."""
    bound = math.inf
    for transform in transforms:
        bound = transform.bounded(bound)
    return bound
