"""Random numbers that are a function of their names: no generator, no order of calls. Pure.

What is drawn for one device does not depend on what was drawn for others before it.
"""

from __future__ import annotations

import hashlib
import math
from statistics import NormalDist

_STEPS = 1 << 53
_STANDARD = NormalDist()


def uniform(*names: int | str) -> float:
    """Return a number above 0 and below 1, the same for the same names."""
    text = "/".join(map(str, names))
    drawn = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
    return ((drawn >> 11) + 0.5) / _STEPS


def exponential(mean: float, *names: int | str) -> float:
    """Return a time with this mean, above 0: how long until something that has no memory."""
    return -mean * math.log(uniform(*names))


def lognormal(sigma: float, *names: int | str) -> float:
    """Return a factor with median 1 whose logarithm has the deviation ``sigma``."""
    return math.exp(sigma * _STANDARD.inv_cdf(uniform(*names))) if sigma else 1.0
