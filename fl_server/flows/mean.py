"""The mean of what several devices measured. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence


def weighted_mean(rows: Sequence[tuple[float, int]]) -> float | None:
    """Return the mean of values by their weights, None where nothing has any weight.

    It lies between the smallest and the largest value, whatever is lost in rounding: no sum
    overflows, and the mean of equal values is that value.
    """
    total = sum(weight for _, weight in rows)
    if not total:
        return None
    mean = math.fsum(value * (weight / total) for value, weight in rows)
    values = [value for value, weight in rows if weight]
    return min(max(mean, min(values)), max(values))
