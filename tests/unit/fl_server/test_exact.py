"""The exact sum: its arithmetic by hand, its limbs, and what a large cohort does to them."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from fl_server.aggregation.arithmetic.exact import LIMB_BITS, BlockSum, Float32s, Workspace
from tests.exactness import Updates, float32s, number, summed, true_sum

ORDERS = 10.0 ** np.arange(-30, 13)
"""Forty-three orders of magnitude, up to the largest that running variances are made of."""


def mean_of(updates: Updates) -> list[float]:
    total = summed(updates, len(updates[0][0]), len(updates))
    mean: list[float] = (total.total() / sum(weight for _, weight in updates)).tolist()
    return mean


def test_the_mean_of_equal_updates_is_that_update() -> None:
    vector = float32s(0.5, -0.25, 3.0, 0.0, -0.0)
    assert mean_of([(vector, 3), (vector, 5), (vector, 7)]) == vector.tolist()


def test_the_weighted_mean_by_hand() -> None:
    assert mean_of([(float32s(1.0, 0.0), 1), (float32s(0.0, 4.0), 3)]) == [0.25, 3.0]


@pytest.mark.parametrize("weight", [1, 600, 1_500_000, 1 << 40])
def test_thirty_orders_of_magnitude_in_one_vector_come_out_as_they_went_in(weight: int) -> None:
    vector = np.concatenate([ORDERS, -ORDERS]).astype(np.float32)
    found = np.array(mean_of([(vector, weight)] * 3), np.float32)
    assert found.tobytes() == vector.tobytes()


def test_a_large_value_costs_the_small_ones_beside_it_nothing() -> None:
    """The running variance of a sensor moves by thousands, a weight by 1e-9."""
    small = np.random.default_rng(0).normal(0, 1e-9, 1000).astype(np.float32)
    large = small.copy()
    large[0] = 8100.0
    assert mean_of([(large, 600), (large, 40)])[1:] == mean_of([(small, 600), (small, 40)])[1:]


def test_what_cancels_leaves_the_rest() -> None:
    assert mean_of([(float32s(1e30), 1), (float32s(1e-30), 1), (float32s(-1e30), 1)]) == [
        float(np.float32(1e-30)) / 3
    ]


def test_denormal_values_count() -> None:
    tiny = 2.0**-149
    assert mean_of([(float32s(tiny, -tiny), 1), (float32s(0, -tiny), 3)]) == [tiny / 4, -tiny]


def test_a_tie_goes_to_the_even_one_and_a_little_more_goes_up() -> None:
    """2**53 + 1 lies between two float64s; a value far below it decides."""
    half = [(float32s(2.0**53, 2.0**53), 1), (float32s(1.0, 1.0), 1)]
    assert summed(half, 2).total().tolist() == [2.0**53, 2.0**53]
    above = [*half, (float32s(0.0, 2.0**-100), 1)]
    assert summed(above, 2).total().tolist() == [2.0**53, 2.0**53 + 2]
    below = [*half, (float32s(-(2.0**-100), 0.0), 1)]
    assert summed(below, 2).total().tolist() == [2.0**53, 2.0**53]


def test_inputs_are_not_changed() -> None:
    vector = float32s(1.5, -2.5)
    before = vector.copy()
    summed([(vector, 4), (float32s(1e-30, 1e30), 1 << 40), (vector, 3)], 2)
    assert np.array_equal(vector, before)


def test_zeros_of_either_sign_and_a_weight_of_nothing_take_no_room() -> None:
    total = summed([(float32s(0.0, -0.0), 3), (float32s(1.0, 1.0), 0)], 2)
    assert total.limbs == []
    assert total.total().tolist() == [0.0, 0.0]


# --- limbs --------------------------------------------------------------------------------------


def usual(size: int, seed: int) -> Float32s:
    """Return changes of weights: of a few orders of magnitude, each of full precision."""
    return np.random.default_rng(seed).normal(0, 1e-3, size).astype(np.float32)


@pytest.mark.parametrize(("cohort", "examples"), [(2, 5000), (8, 600), (30, 50)])
def test_usual_updates_take_one_limb(cohort: int, examples: int) -> None:
    size = 1 << 16
    updates = [(usual(size, seed), examples) for seed in range(cohort)]
    assert len(summed(updates, size, cohort).limbs) == 1


def test_devices_with_millions_of_rows_take_two() -> None:
    size = 1 << 16
    updates = [(usual(size, seed), 1_500_000 + seed) for seed in range(6)]
    total = summed(updates, size, 6)
    assert len(total.limbs) == 2
    sample = slice(0, 40)
    expected = true_sum([(vector[sample], weight) for vector, weight in updates], 40)
    assert number(total)[sample] == expected


def test_what_comes_later_may_be_smaller_or_larger_than_all_before() -> None:
    updates = [
        (float32s(value, 1.0), weight)
        for value in (1e-3, 1e12, 1e-30, 3e38, 1e-45, -3e38)
        for weight in (1, 1 << 40)
    ]
    total = summed(updates, 2)
    assert number(total) == true_sum(updates, 2)
    assert len(total.limbs) <= 10, "all that float32 can be"


def test_a_hundred_thousand_of_the_largest_updates_fit() -> None:
    """The bound that a sum keeps of its limbs is where so many leave it."""
    largest = float32s(float(np.finfo(np.float32).max), 1.0, 2.0**-149)
    total, work = BlockSum(3, 100_000), Workspace(3)
    for _ in range(5):
        total.add(largest, 1 << 40, work)
    before = number(total)
    for place, bound in enumerate(total.bounds):
        assert bound <= 1 << 62
        assert abs(total.limbs[place]).max() <= bound
    total.bounds = [1 << 62 for _ in total.limbs]  # as after so many that no limb has room left
    total.add(largest, 1 << 40, work)
    assert number(total) == [each * 6 / 5 for each in before]
    assert all(abs(limb).max() < 1 << (LIMB_BITS + 1) for limb in total.limbs[:-1])


@pytest.mark.parametrize("sign", [1, -1])
def test_a_limb_is_carried_from_before_it_is_full(sign: int) -> None:
    """As after four million additions: a lower limb that has no room for one more."""
    total, work = summed([(float32s(1.0, -1e-25), 1 << 40)], 2), Workspace(2)
    assert len(total.limbs) > 1
    total.limbs[0][:] = sign * ((1 << 62) - 1)
    total.bounds[0] = 1 << 62
    before = number(total)
    total.add(float32s(1.0, 1e-25), 3, work)
    tiny = Fraction(float(np.float32(1e-25)))
    assert number(total) == [before[0] + 3, before[1] + 3 * tiny]
    for limb, bound in zip(total.limbs, total.bounds, strict=True):
        assert abs(limb).max() <= bound <= 1 << 62
    assert abs(total.limbs[0]).max() < 1 << (LIMB_BITS + 1)


def test_limbs_that_are_spare_zeros_are_used_before_new_ones() -> None:
    spare = np.zeros((2, 3), np.int64)
    total, work = BlockSum(3, 1, spare), Workspace(3)
    total.add(float32s(1.0, 2.0, 3.0), 5, work)
    assert spare[0].any()
    assert not spare[1].any()
    total.add(float32s(1e-20, 0.0, 0.0), 5, work)
    assert spare[1].any()


def test_a_sum_with_other_arrays_leaves_the_first_alone() -> None:
    total, work = summed([(float32s(1.0, 2.0), 3)], 2), Workspace(2)
    before = number(total)
    other = total.with_limbs([limb.copy() for limb in total.limbs])
    for _ in range(3):
        other.add(float32s(1e12, 1e-30), 1 << 40, work)
    assert number(total) == before
    assert len(total.bounds) == len(total.limbs) == 1
