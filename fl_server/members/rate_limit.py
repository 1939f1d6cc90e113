"""A bound on how many messages of one sender are accepted: a token bucket for each name. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class _Bucket:
    left: float
    at_s: float


class RateLimit:
    """Admits ``burst`` at once and ``per_s`` a second, for each name.

    Args:
        per_s: how many a second in the long run.
        burst: how many at once.
        names: how many are remembered; the one counted longest ago is forgotten first.
    """

    def __init__(self, per_s: float, burst: int, names: int = 100_000) -> None:
        self._per_s = per_s
        self._burst = burst
        self._names = names
        self._buckets: dict[str, _Bucket] = {}

    def admits(self, name: str, now_s: float, weight: float = 1.0) -> bool:
        """Count one of ``name``, which takes ``weight``; return whether it is within the bound."""
        bucket = self._buckets.pop(name, None)
        if bucket is None:
            bucket = _Bucket(float(self._burst), now_s)
            if len(self._buckets) >= self._names:
                del self._buckets[next(iter(self._buckets))]
        self._buckets[name] = bucket
        bucket.left = min(self._burst, bucket.left + (now_s - bucket.at_s) * self._per_s)
        bucket.at_s = now_s
        if bucket.left < weight:
            return False
        bucket.left -= weight
        return True
