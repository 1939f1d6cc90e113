"""Measures how much data have changed, and anonymises the counts that are reported. Pure.

A report is built so that no single example can be picked out of it. Counts below a minimum are
merged with their neighbours or pooled; counts are rounded down to a multiple of that minimum, so
that two reports differ by many examples or by none; edges computed from the data never leave the
device.
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
class BinRange:
    """Neighbouring bins that are reported as one: ``first`` up to, but not including, ``end``."""

    first: int
    end: int
    count: int


def quantile_edges(values: Sequence[float], min_count: int) -> list[float]:
    """Return edges that divide ``values`` into at most ten bins of at least ``min_count`` each.

    Equal values are never divided. If all are equal or too few, the edges enclose them, so that
    any other value shows as a change.
    """
    ordered = sorted(values)
    wanted = min(MOST_BINS, len(ordered) // min_count)
    size = max(min_count, len(ordered) / max(1, wanted))
    edges: list[float] = []
    start = 0
    for index in range(1, len(ordered)):
        differs = ordered[index - 1] < ordered[index]
        if differs and index - start >= size and len(ordered) - index >= min_count:
            edges.append(ordered[index])
            start = index
    return edges or [ordered[0], math.nextafter(ordered[-1], math.inf)]


def histogram(values: Sequence[float], edges: Sequence[float]) -> list[int]:
    """Return how many values are in each bin; a value equal to an edge is in the bin above it."""
    counts = [0] * (len(edges) + 1)
    for value in values:
        counts[bisect_right(edges, value)] += 1
    return counts


def psi(expected: Sequence[int], actual: Sequence[int]) -> float:
    """Return the population stability index: 0 for equal shares, above 0.2 for a real change.

    Source: N. Siddiqi, Credit Risk Scorecards (2006): the sum of (a - e) ln(a / e) over the bins'
    shares. A share of 0 counts as 1e-4.
    """
    totals = sum(expected), sum(actual)
    if len(expected) != len(actual) or not all(totals):
        raise ValueError("two histograms over the same bins, neither of them empty")
    pairs = (
        (max(e / totals[0], _LEAST_SHARE), max(a / totals[1], _LEAST_SHARE))
        for e, a in zip(expected, actual, strict=True)
    )
    return sum((a - e) * math.log(a / e) for e, a in pairs)


def psi_by_chance(bins: int, expected: int, actual: int) -> float:
    """Return the PSI below which 19 of 20 pairs of samples of the same distribution are.

    Source: B. Yurdakul, Statistical properties of PSI (2018): it is nearly chi-squared with
    ``bins - 1`` degrees of freedom, times 1/n + 1/m; its quantile by Wilson and Hilferty.
    """
    degrees = bins - 1
    if degrees < 1:
        return 0.0
    spread = 2 / (9 * degrees)
    quantile = degrees * (1 - spread + _Z95 * math.sqrt(spread)) ** 3
    return quantile * (1 / expected + 1 / actual)


def merged(counts: Sequence[int], min_count: int) -> list[BinRange]:
    """Return neighbouring bins, joined until each has ``min_count``; none if all have fewer."""
    ranges: list[BinRange] = []
    first, total = 0, 0
    for index, count in enumerate(counts):
        total += count
        if total >= min_count:
            ranges.append(BinRange(first, index + 1, total))
            first, total = index + 1, 0
    if first < len(counts) and ranges:
        last = ranges.pop()
        ranges.append(BinRange(last.first, len(counts), last.count + total))
    return ranges


def pooled(counts: Sequence[int], min_count: int) -> tuple[dict[int, int], int]:
    """Return the classes that may be reported with their counts, and the count of all others.

    The others are none or at least ``min_count``. Else the smallest reported class joins them,
    because the difference to a total would reveal a small count.
    """
    reported = {number: count for number, count in enumerate(counts) if count >= min_count}
    others = sum(counts) - sum(reported.values())
    if 0 < others < min_count and reported:
        smallest = min(reported, key=lambda number: (reported[number], number))
        others += reported.pop(smallest)
    return reported, others if others >= min_count else 0


def rounded(count: int, min_count: int) -> int:
    """Return a count as it is reported: rounded down to a multiple of ``min_count``."""
    return count // min_count * min_count
