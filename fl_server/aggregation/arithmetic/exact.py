"""The exact sum: each finite float32 times its weight is added as a whole number, unrounded.

A float32 is a whole number times a power of two, so a weighted sum of them is one too. It is kept
as such, in as many 64-bit integers a value as the data need: usually one. Nothing is lost and
nothing is refused, so the sum does not depend on the order of the updates, on their grouping, on
restarts, or on what else is in the vector. It is rounded once, to float64, when the mean is taken.
Arithmetic only: no files, no network, no clock.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from copy import copy

import numpy as np
import numpy.typing as npt

Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]

LIMB_BITS = 40
_LIMB = 1 << LIMB_BITS
_FULL = 1 << 62
"""No limb's absolute value goes beyond this, whatever is added."""

_WEIGHT_BITS = 29
"""A float32 has 24 significant bits: times a weight of 29 bits it is exact in float64."""

_SLACK_BITS = 2
"""Later updates may be this much larger than the first before a block needs a second limb."""

_SCALABLE = range(-127, 1)
"""Units by which a float32 is scaled in float32 without underflow: 2**127 is its last power."""


class Workspace:
    """Buffers for additions, shared by the blocks of one sum: one thread uses it at a time."""

    def __init__(self, count: int) -> None:
        self.scaled: Float32s = np.empty(count, np.float32)
        self.whole: Float32s = np.empty(count, np.float32)
        self.same: npt.NDArray[np.bool_] = np.empty(count, np.bool_)
        self.integers: Int64s = np.empty(count, np.int64)
        self._doubles: tuple[Float64s, Float64s] | None = None

    def doubles(self, count: int) -> tuple[Float64s, Float64s]:
        """Return two buffers of float64, made when a block first needs them."""
        if self._doubles is None:
            self._doubles = np.empty(len(self.scaled)), np.empty(len(self.scaled))
        first, second = self._doubles
        return first[:count], second[:count]


class BlockSum:
    """The exact weighted sum of a block of ``count`` values.

    The sum of value i is ``limbs[0][i] * 2**unit + limbs[1][i] * 2**(unit + 40) + ...``. The first
    update decides where the limbs begin, later ones add limbs below or above where they must: so
    the limbs depend on the order of the updates, and the number that they stand for does not.

    Attributes:
        unit: the power of two that the lowest limb counts.
        limbs: signed integers; none yet where all values were zeros.
        bounds: what each limb's absolute values are at most.
    """

    def __init__(self, count: int, updates: int = 1, spare: Iterable[Int64s] = ()) -> None:
        """Begin at zero.

        Args:
            updates: how many are expected, so that they find room above the first one.
            spare: zeros that become limbs before others are made.
        """
        self.count = count
        self.unit = 0
        self.limbs: list[Int64s] = []
        self.bounds: list[int] = []
        self._spare = list(spare)
        self._room_bits = updates.bit_length() + _SLACK_BITS

    @classmethod
    def of(cls, unit: int, digits: Sequence[Int64s]) -> BlockSum:
        """Return the sum of ``digits[j] * 2**(unit + 40 j)``, each digit within 40 bits."""
        found = cls(len(digits[0]))
        found.unit, found.limbs, found.bounds = unit, list(digits), [_LIMB] * len(digits)
        return found

    def with_limbs(self, limbs: list[Int64s]) -> BlockSum:
        """Return the sum with other arrays as its limbs: none while they lie in a file."""
        other = copy(self)
        other.limbs, other.bounds = list(limbs), list(self.bounds)
        return other

    def add(self, values: Float32s, weight: int, work: Workspace) -> None:
        """Add ``weight * values``: finite values, a weight of at least 0 and any size."""
        reach = _reach(values)
        if reach == 0 or weight == 0:
            return
        if not self.limbs:
            self.unit = self._first_unit(reach, weight)
            self._insert(0)
        if len(self.limbs) > 1 or not self._add_to_one_limb(values, weight, reach, work):
            self._add_to_limbs(values, weight, work)

    def add_all(self, rows: Float32s, weights: Sequence[int], work: Workspace) -> None:
        """Add ``weights[i] * rows[i]`` for every row: the same sum as one after the other.

        Shapes:
            rows: [n, count], finite.
        """
        if not self._add_rows_to_one_limb(rows, weights):
            for row, weight in zip(rows, weights, strict=True):
                self.add(row, weight, work)

    def merge(self, other: BlockSum, work: Workspace) -> None:
        """Add another sum of the same block, exactly."""
        rest, _ = work.doubles(self.count)
        for place, limb in enumerate(other.limbs):
            # in halves, which float64 holds exactly
            for part, exponent in ((limb >> 31, 31), (limb & ((1 << 31) - 1), 0)):
                np.multiply(part, 2.0 ** (other.unit + LIMB_BITS * place + exponent), out=rest)
                if not self.limbs:
                    self.unit = other.unit
                    self._insert(0)
                self._spread(rest, work)

    def total(self) -> Float64s:
        """Return the sum, each value rounded once to the nearest float64."""
        match self.limbs:
            case []:
                return np.zeros(self.count)
            case [limb]:
                return limb.astype(np.float64) * 2.0**self.unit
        return _rounded(self.limbs, self.unit)

    def integers(self) -> tuple[int, list[Int64s]]:
        """Return (unit, digits) of the sum in its one canonical form: equal sums have equal ones.

        The unit is a multiple of 40, each digit within [0, 2**40), the last one 0 or -1 for the
        sign; no zeros stand below, and no digit that only repeats the sign stands above.
        """
        grid = BlockSum(self.count)
        grid.unit = self.unit // LIMB_BITS * LIMB_BITS
        grid._insert(0)
        grid.merge(self, Workspace(self.count))
        grid._carry()
        while not np.isin(grid.limbs[-1], (0, -1)).all():
            grid._append()
        digits = grid.limbs
        while len(digits) > 1 and (digits[-2] == (digits[-1] & (_LIMB - 1))).all():
            del digits[-2]
        while len(digits) > 1 and not digits[0].any():
            del digits[0]
            grid.unit += LIMB_BITS
        return (grid.unit if len(digits) > 1 or digits[0].any() else 0), digits

    # --- additions ----------------------------------------------------------------------------

    def _add_to_one_limb(
        self, values: Float32s, weight: int, reach: float, work: Workspace
    ) -> bool:
        """Add where all is a multiple of the unit and fits; return whether it was so."""
        if self.unit not in _SCALABLE:
            return False
        scale = 2.0**-self.unit
        bound = self.bounds[0] + math.ceil(reach * scale) * weight
        if bound > _FULL:
            return False
        scaled, whole = work.scaled[: self.count], work.whole[: self.count]
        same, integers = work.same[: self.count], work.integers[: self.count]
        np.multiply(values, np.float32(scale), out=scaled)
        np.rint(scaled, out=whole)
        if not np.equal(scaled, whole, out=same).all():
            return False
        np.copyto(integers, scaled, casting="unsafe")
        np.multiply(integers, np.int64(weight), out=integers)
        np.add(self.limbs[0], integers, out=self.limbs[0])
        self.bounds[0] = bound
        return True

    def _add_rows_to_one_limb(self, rows: Float32s, weights: Sequence[int]) -> bool:
        """Add where all is a multiple of the unit and fits; return whether it was so."""
        reach, total = _reach(rows), sum(weights)
        if len(self.limbs) > 1 or reach == 0 or total == 0:
            return reach == 0 or total == 0
        unit = self.unit if self.limbs else self._first_unit(reach, max(weights))
        if unit not in _SCALABLE:
            return False
        scale = 2.0**-unit
        bound = (self.bounds[0] if self.limbs else 0) + math.ceil(reach * scale) * total
        if bound > _FULL:
            return False
        scaled = rows * np.float32(scale)
        if not (np.rint(scaled) == scaled).all():
            return False
        counts = np.array(weights, np.int64)
        if not self.limbs:
            self.unit = unit
            self._insert(0)
        self.limbs[0] += np.einsum("i,ij->j", counts, scaled.astype(np.int64))
        self.bounds[0] = bound
        return True

    def _first_unit(self, reach: float, weight: int) -> int:
        """Return the unit of the first limb, where the first update has these bounds."""
        exponent = math.frexp(reach)[1] + weight.bit_length()
        return exponent + self._room_bits - (_FULL.bit_length() - 1)

    def _add_to_limbs(self, values: Float32s, weight: int, work: Workspace) -> None:
        rest, _ = work.doubles(self.count)
        for shift in range(0, weight.bit_length(), _WEIGHT_BITS):
            piece = (weight >> shift) & ((1 << _WEIGHT_BITS) - 1)
            if piece:
                np.copyto(rest, values)
                np.multiply(rest, math.ldexp(piece, shift), out=rest)
                self._spread(rest, work)

    def _spread(self, rest: Float64s, work: Workspace) -> None:
        """Add float64 values exactly, from the highest limb down; leaves zeros in ``rest``."""
        self._make_room(_reach(rest))
        for place in reversed(range(len(self.limbs))):
            self._take(place, rest, work)
        while rest.any():
            self._insert(0)
            self.unit -= LIMB_BITS
            self.bounds[0] = _LIMB
            self._take(0, rest, work)

    def _take(self, place: int, rest: Float64s, work: Workspace) -> None:
        """Move what a limb can count from ``rest`` to it: what is left is below half its unit.

        Exact: both the multiple of the unit and the rest have no more digits than ``rest`` had.
        """
        exponent = self.unit + LIMB_BITS * place
        _, digits = work.doubles(self.count)
        integers = work.integers[: self.count]
        np.multiply(rest, 2.0**-exponent, out=digits)
        np.rint(digits, out=digits)
        np.copyto(integers, digits, casting="unsafe")
        np.add(self.limbs[place], integers, out=self.limbs[place])
        np.multiply(digits, 2.0**exponent, out=digits)
        np.subtract(rest, digits, out=rest)

    # --- limbs --------------------------------------------------------------------------------

    def _insert(self, place: int) -> None:
        zeros = self._spare.pop(0) if self._spare else np.zeros(self.count, np.int64)
        self.limbs.insert(place, zeros)
        self.bounds.insert(place, 0)

    def _make_room(self, reach: float) -> None:
        """Make sure that adding values up to ``reach`` takes no limb beyond its bound."""
        if max(self.bounds[:-1], default=0) > _FULL - _LIMB:
            self._carry()
        while (bound := self.bounds[-1] + self._count_of(reach)) > _FULL:
            self._append()
        self.bounds = [*(below + _LIMB for below in self.bounds[:-1]), bound]

    def _count_of(self, reach: float) -> int:
        """Return how many units of the highest limb a value has at most."""
        top = self.unit + LIMB_BITS * (len(self.limbs) - 1)
        return math.ceil(math.ldexp(reach, -top))

    def _carry(self) -> None:
        """Leave only 40 bits in each limb but the highest."""
        for place in range(len(self.limbs) - 1):
            self._carry_from(place)

    def _append(self) -> None:
        self._insert(len(self.limbs))
        self._carry_from(len(self.limbs) - 2)

    def _carry_from(self, place: int) -> None:
        limb = self.limbs[place]
        self.limbs[place + 1] += limb >> LIMB_BITS
        limb &= _LIMB - 1
        self.bounds[place + 1] += (self.bounds[place] >> LIMB_BITS) + 1
        self.bounds[place] = _LIMB


def _reach(values: Float32s | Float64s) -> float:
    """Return the largest absolute value."""
    return max(float(values.max()), -float(values.min()))


def _rounded(limbs: list[Int64s], unit: int) -> Float64s:
    """Return ``sum(limbs[j] * 2**(unit + 40 j))``, rounded once to the nearest float64.

    Of each value the leading digits are taken, at least 62 bits, and what follows them counts as
    one bit below: this is all that rounding to 53 bits can depend on.
    """
    digits, negative = _magnitudes(limbs)
    high, low = digits[-1].copy(), np.zeros_like(digits[-1])
    place = np.zeros(len(high), np.int64)
    is_full = np.zeros(len(high), np.bool_)
    for below in reversed(range(len(digits) - 1)):
        digit = digits[below]
        is_short = high < (_FULL >> LIMB_BITS)
        is_next = ~is_full & ~is_short
        low[is_full & (digit != 0)] |= 1
        low[is_next], place[is_next] = digit[is_next], below
        high[is_short] = (high[is_short] << LIMB_BITS) | digit[is_short]
        is_full |= is_next
    # two halves that float64 holds exactly, so that their sum is rounded once
    upper = (high >> 11).astype(np.float64)
    lower = np.where(is_full, ((high & 2047) << LIMB_BITS) | low, high & 2047).astype(np.float64)
    upper *= np.where(is_full, 2.0 ** (11 + LIMB_BITS), 2.0**11)
    rounded = np.ldexp(upper + lower, LIMB_BITS * place + unit)
    result: Float64s = np.where(negative, -rounded, rounded)
    return result


def _magnitudes(limbs: list[Int64s]) -> tuple[list[Int64s], npt.NDArray[np.bool_]]:
    """Return the absolute values' digits, all within [0, 2**40) but the highest, and the signs."""
    signs = _carried(limbs)[-1] < 0
    return _carried([np.where(signs, -limb, limb) for limb in limbs]), signs


def _carried(limbs: list[Int64s]) -> list[Int64s]:
    digits, carry = [], np.zeros_like(limbs[0])
    for limb in limbs[:-1]:
        whole = limb + carry
        digits.append(whole & (_LIMB - 1))
        carry = whole >> LIMB_BITS
    return [*digits, limbs[-1] + carry]
