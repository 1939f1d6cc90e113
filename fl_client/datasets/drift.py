"""How much data have changed, and what of it may be told. Pure.

What is told is made so that nobody can be picked out of it: counts below a minimum are merged with
their neighbours or pooled, what is left is rounded down to a multiple of that minimum, so that two
reports differ by many examples or by none, and edges that come from the data stay on the device.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

MOST_BINS = 10
NOTEWORTHY = 0.2
_LEAST_SHARE = 1e-4
_Z95 = 1.6449


@dataclass(frozen=True)
class Run:
    """Neighbouring bins that are told as one: ``first`` up to, without, ``end``."""

    first: int
    end: int
    count: int


def quantile_edges(values: Sequence[float], min_count: int) -> list[float]:
    """Return edges that part ``values`` into at most ten bins of at least ``min_count`` each.

    Equal values are never parted. Where there is nothing to part, the edges lie around all of them:
    what was always the same is seen to change.
    """
    ordered = sorted(values)
    wanted = min(MOST_BINS, len(ordered) // min_count)
    size = max(min_count, len(ordered) / max(1, wanted))
    edges: list[float] = []
    start = 0
    for place in range(1, len(ordered)):
        parts = ordered[place - 1] < ordered[place]
        if parts and place - start >= size and len(ordered) - place >= min_count:
            edges.append(ordered[place])
            start = place
    return edges or [ordered[0], math.nextafter(ordered[-1], math.inf)]


def histogram(values: Sequence[float], edges: Sequence[float]) -> list[int]:
    """Return how many values lie in each bin; a value on an edge counts above it."""
    counts = [0] * (len(edges) + 1)
    for value in values:
        counts[bisect_right(edges, value)] += 1
    return counts


def psi(expected: Sequence[int], actual: Sequence[int]) -> float:
    """Return the population stability index: 0 for equal shares, above 0.2 for a real change.

    Source: N. Siddiqi, Credit Risk Scorecards (2006): the sum of (a - e) ln(a / e) over the bins'
    shares. A share of nothing counts as 1e-4.
    """
    totals = sum(expected), sum(actual)
    if len(expected) != len(actual) or not all(totals):
        raise ValueError("two histograms over the same bins, neither of them empty")
    pairs = (
        (max(e / totals[0], _LEAST_SHARE), max(a / totals[1], _LEAST_SHARE))
        for e, a in zip(expected, actual, strict=True)
    )
    return sum((a - e) * math.log(a / e) for e, a in pairs)


def by_chance(bins: int, expected: int, actual: int) -> float:
    """Return the PSI that 19 of 20 pairs of samples of one distribution stay below.

    Source: B. Yurdakul, Statistical properties of PSI (2018): it is nearly chi-squared with
    ``bins - 1`` degrees of freedom, times 1/n + 1/m; its quantile by Wilson and Hilferty.
    """
    degrees = bins - 1
    if degrees < 1:
        return 0.0
    spread = 2 / (9 * degrees)
    quantile = degrees * (1 - spread + _Z95 * math.sqrt(spread)) ** 3
    return quantile * (1 / expected + 1 / actual)


def merged(counts: Sequence[int], min_count: int) -> list[Run]:
    """Return neighbouring bins joined until each holds ``min_count``; none where all are fewer."""
    runs: list[Run] = []
    first, held = 0, 0
    for place, count in enumerate(counts):
        held += count
        if held >= min_count:
            runs.append(Run(first, place + 1, held))
            first, held = place + 1, 0
    if first < len(counts) and runs:
        last = runs.pop()
        runs.append(Run(last.first, len(counts), last.count + held))
    return runs


def pooled(counts: Sequence[int], min_count: int) -> tuple[dict[int, int], int]:
    """Return the classes that may be told with their counts, and the count of all others.

    The others are none or at least ``min_count``: else the smallest class that might be told joins
    them, since what is missing from a total tells what was left out.
    """
    told = {number: count for number, count in enumerate(counts) if count >= min_count}
    others = sum(counts) - sum(told.values())
    if 0 < others < min_count and told:
        smallest = min(told, key=lambda number: (told[number], number))
        others += told.pop(smallest)
    return told, others if others >= min_count else 0


def rounded(count: int, min_count: int) -> int:
    """Return a count as it is told: a multiple of ``min_count``, not above it."""
    return count // min_count * min_count
