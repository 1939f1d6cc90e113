"""Laws of the exact sum: no order, grouping, tree or restart changes a bit."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_server.aggregation.arithmetic.exact import (
    ExactSum,
    FixedPoint,
    Float32s,
    Int64s,
    MemorySums,
)

FIXED = FixedPoint()
SIZE = 4
LIMIT = FIXED.value_limit

floats = st.floats(-LIMIT, LIMIT, width=32, allow_subnormal=True)
vectors = st.lists(floats, min_size=SIZE, max_size=SIZE).map(lambda v: np.array(v, np.float32))
updates = st.lists(st.tuples(vectors, st.integers(1, 1 << 16)), min_size=1, max_size=12)
Updates = list[tuple[Float32s, int]]


def sums(given_updates: Updates, fixed: FixedPoint = FIXED) -> Int64s:
    store = MemorySums(SIZE)
    total = ExactSum(SIZE, fixed, store)
    for vector, weight in given_updates:
        total.add_block(0, vector, weight)
    return store.read(0, SIZE)


def weight_of(given_updates: Updates) -> int:
    return sum(weight for _, weight in given_updates)


@given(updates, st.randoms(use_true_random=False))
def test_order_changes_no_bit(given_updates: Updates, source: object) -> None:
    shuffled = list(given_updates)
    source.shuffle(shuffled)  # type: ignore[attr-defined]
    assert np.array_equal(sums(given_updates), sums(shuffled))


@given(updates, st.data())
def test_a_tree_of_sums_is_the_flat_sum(given_updates: Updates, data: st.DataObject) -> None:
    groups = data.draw(st.integers(1, 5))
    owner = [data.draw(st.integers(0, groups - 1)) for _ in given_updates]
    leaves = [
        sums([update for update, mine in zip(given_updates, owner, strict=True) if mine == group])
        for group in range(groups)
    ]
    near = np.add.reduce(leaves[:2])
    far = np.add.reduce(leaves[2:], initial=np.int64(0))
    assert np.array_equal(sums(given_updates), near + far)


@given(updates)
def test_the_sum_is_the_one_of_whole_numbers(given_updates: Updates) -> None:
    expected = [
        sum(round(Fraction(float(v[i])) * 2**FIXED.scale_bits) * w for v, w in given_updates)
        for i in range(SIZE)
    ]
    assert sums(given_updates).tolist() == expected


@given(updates)
def test_the_mean_is_near_the_true_one(given_updates: Updates) -> None:
    """At most half a step of the scale away, and the rounding of the float64 that shows it."""
    weight = weight_of(given_updates)
    mean = FIXED.mean(sums(given_updates), weight)
    for i in range(SIZE):
        true = sum((Fraction(float(v[i])) * w for v, w in given_updates), Fraction()) / weight
        bound = Fraction(1, 2 ** (FIXED.scale_bits + 1)) + abs(true) * Fraction(3, 2**52)
        assert abs(Fraction(float(mean[i])) - true) <= bound


@given(updates)
def test_the_mean_lies_between_the_smallest_and_the_largest(given_updates: Updates) -> None:
    mean = FIXED.mean(sums(given_updates), weight_of(given_updates))
    stack = np.stack([vector for vector, _ in given_updates]).astype(np.float64)
    step = 2.0**-FIXED.scale_bits + np.abs(stack).max(0) * 2.0**-50
    assert (mean >= stack.min(0) - step).all()
    assert (mean <= stack.max(0) + step).all()


@given(vectors, st.integers(1, 1000), st.integers(1, 1000))
def test_weights_add_up(vector: Float32s, first: int, second: int) -> None:
    apart = sums([(vector, first), (vector, second)])
    assert np.array_equal(apart, sums([(vector, first + second)]))


@settings(max_examples=200)
@given(st.integers(8, 40), st.integers(4, 40), st.integers(1, 200), st.data())
def test_nothing_within_the_limits_overflows(
    scale: int, weight_bits: int, cohort: int, data: st.DataObject
) -> None:
    if scale + weight_bits > 60:
        weight_bits = 60 - scale
    fixed = FixedPoint(scale, weight_bits)
    most = fixed.weight_limit(cohort)
    if most < 1:
        return
    limit = fixed.value_limit
    sign = data.draw(st.sampled_from([-1.0, 1.0]))
    vector = np.full(SIZE, sign * limit, np.float32)
    found = sums([(vector, most)] * cohort, fixed)
    assert found.tolist() == [int(sign * limit) * 2**scale * most * cohort] * SIZE
