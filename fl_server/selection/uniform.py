"""Uniform selection without replacement, as a function of (seed, round, attempt, candidates).

Every candidate gets a rank from a hash and the lowest ranks are taken: no generator state, so a
restarted server selects the same cohort, and one more candidate changes at most one place.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable


def select(
    candidates: Iterable[str], count: int, *, seed: int, round_number: int, attempt: int
) -> tuple[str, ...]:
    """Return up to ``count`` of the candidates, sorted by id."""
    prefix, sha256 = f"{seed}/{round_number}/{attempt}/".encode(), hashlib.sha256
    # in their order, in which they lie in memory
    names = list(dict.fromkeys(candidates))
    ranks = [sha256(prefix + name.encode()).digest() for name in names]
    lowest = heapq.nsmallest(count, ranks)
    last = lowest[-1] if lowest else b""
    return tuple(sorted(name for name, rank in zip(names, ranks, strict=True) if rank <= last))
