"""Uniform selection without replacement, as a function of (seed, round, attempt, candidates).

Every candidate gets a rank from a hash and the lowest ranks are taken: no generator state, so a
restarted server selects the same cohort, and one more candidate changes at most one place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def select(
    candidates: Iterable[str], count: int, *, seed: int, round_number: int, attempt: int
) -> tuple[str, ...]:
    """Return up to ``count`` of the candidates, sorted by id."""

    def rank(device_id: str) -> bytes:
        text = f"{seed}/{round_number}/{attempt}/{device_id}"
        return hashlib.sha256(text.encode()).digest()

    return tuple(sorted(sorted(set(candidates), key=rank)[:count]))
