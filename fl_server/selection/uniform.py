"""Uniform selection without replacement, as a function of (seed, round, attempt, candidates).

Every candidate gets a rank from a hash and the lowest ranks are taken: no generator state, so a
restarted server selects the same cohort, and one more candidate changes at most one place.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable
from functools import lru_cache


def select(
    candidates: Iterable[str], count: int, *, seed: int, round_number: int, attempt: int
) -> tuple[str, ...]:
    """Return up to ``count`` of the candidates, sorted by id."""
    prefix, sha256 = f"{seed}/{round_number}/{attempt}/".encode(), hashlib.sha256
    known = _encoded(tuple(candidates))
    ranked = [(sha256(prefix + text).digest(), each) for text, each in known]
    return tuple(sorted(device_id for _, device_id in heapq.nsmallest(count, ranked)))


@lru_cache(maxsize=2)
def _encoded(candidates: tuple[str, ...]) -> list[tuple[bytes, str]]:
    """Return the candidates, each once, with what is hashed: most rounds have the same ones."""
    return [(each.encode(), each) for each in set(candidates)]
