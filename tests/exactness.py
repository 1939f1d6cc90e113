"""The exact sum told again in whole numbers of any size: the oracle of the sum's tests."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction

import numpy as np

from fl_server.aggregation.arithmetic.exact import BlockSum, Float32s, Workspace

Updates = list[tuple[Float32s, int]]


def true_sum(updates: Iterable[tuple[Float32s, int]], size: int) -> list[Fraction]:
    """Return each value's weighted sum."""
    sums = [Fraction()] * size
    for values, weight in updates:
        sums = [
            total + Fraction(value) * weight
            for total, value in zip(sums, values.tolist(), strict=True)
        ]
    return sums


def summed(updates: Iterable[tuple[Float32s, int]], size: int, expected: int = 1) -> BlockSum:
    """Return the sum of updates of one block, in their order."""
    total, work = BlockSum(size, expected), Workspace(size)
    for values, weight in updates:
        total.add(values, weight, work)
    return total


def number(total: BlockSum) -> list[Fraction]:
    """Return the numbers that a sum's limbs stand for."""
    return number_of(total.unit, [limb.tolist() for limb in total.limbs], total.count)


def number_of(unit: int, digits: list[list[int]], count: int) -> list[Fraction]:
    """Return the numbers that digits to base 2**40 stand for."""
    whole = [
        sum(digit[i] << (40 * place) for place, digit in enumerate(digits)) for i in range(count)
    ]
    return [Fraction(2) ** unit * each for each in whole]


def canonical(total: BlockSum) -> tuple[int, list[list[int]]]:
    """Return a sum's one canonical form, to be compared."""
    unit, digits = total.integers()
    return unit, [digit.tolist() for digit in digits]


def float32s(*numbers: float) -> Float32s:
    """Return a vector."""
    return np.array(numbers, np.float32)
