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
    names, texts = _encoded(tuple(candidates))
    ranks = [sha256(prefix + text).digest() for text in texts]
    lowest = heapq.nsmallest(count, ranks)
    last = lowest[-1] if lowest else b""
    return tuple(sorted(name for name, rank in zip(names, ranks, strict=True) if rank <= last))


@lru_cache(maxsize=2)
def _encoded(candidates: tuple[str, ...]) -> tuple[list[str], list[bytes]]:
    """Return the candidates, each once, and what is hashed: most rounds have the same ones."""
    # in their order, in which they lie in memory
    names = list(dict.fromkeys(candidates))
    return names, [name.encode() for name in names]
