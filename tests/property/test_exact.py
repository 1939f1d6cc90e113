"""Laws of the exact sum: it is the true sum, so no order, grouping, tree or restart matters.

Values are of any size that float32 has, 76 orders of magnitude, mixed in one vector.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_server.aggregation.arithmetic.exact import BlockSum, Float32s, Workspace
from tests.exactness import Updates, canonical, float32s, number, number_of, summed, true_sum

SIZE = 4
LARGEST = float(np.finfo(np.float32).max)
LARGEST_WEIGHT = 1 << 40
COHORT = 100_000

any_float = st.floats(-LARGEST, LARGEST, width=32, allow_subnormal=True)
# what training gives: numbers of some orders of magnitude, around one of thirty
usual_float = st.builds(
    lambda mantissa, exponent: float(np.float32(mantissa * 2.0**exponent)),
    st.floats(-1, 1, width=32),
    st.integers(-60, 40),
)
floats = st.one_of(any_float, usual_float, st.sampled_from([0.0, -0.0, 1e12, -1e12, 1e-18, 1.0]))
vectors = st.lists(floats, min_size=SIZE, max_size=SIZE).map(lambda values: float32s(*values))
weights = st.one_of(
    st.integers(1, 5000), st.integers(1, LARGEST_WEIGHT), st.sampled_from([1, LARGEST_WEIGHT])
)
updates = st.lists(st.tuples(vectors, weights), min_size=1, max_size=12)


@given(updates, st.integers(1, COHORT))
def test_the_sum_is_the_true_one(given_updates: Updates, expected: int) -> None:
    total = summed(given_updates, SIZE, expected)
    assert number(total) == true_sum(given_updates, SIZE)
    assert all(
        abs(limb).max() <= bound for limb, bound in zip(total.limbs, total.bounds, strict=True)
    )


@given(updates)
def test_it_is_rounded_once(given_updates: Updates) -> None:
    """``float`` of a fraction is the float64 nearest to it, ties to even."""
    found = summed(given_updates, SIZE).total()
    assert found.tolist() == [float(each) for each in true_sum(given_updates, SIZE)]


@given(updates, st.randoms(use_true_random=False))
def test_order_changes_no_bit(given_updates: Updates, source: object) -> None:
    shuffled = list(given_updates)
    source.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = summed(given_updates, SIZE), summed(shuffled, SIZE)
    assert canonical(one) == canonical(other)
    assert one.total().tobytes() == other.total().tobytes()


alike = st.lists(
    st.tuples(st.lists(st.integers(-9, 9), min_size=SIZE, max_size=SIZE), st.integers(0, 5000)),
    min_size=1,
    max_size=12,
).map(lambda rows: [(float32s(*values) / np.float32(1024), weight) for values, weight in rows])


@given(st.one_of(updates, alike), st.integers(0, 12))
def test_updates_added_together_are_the_sum_of_each(given_updates: Updates, cut: int) -> None:
    rows = np.stack([values for values, _ in given_updates])
    counts = [weight for _, weight in given_updates]
    total, work = BlockSum(SIZE, len(rows)), Workspace(SIZE)
    for some in (slice(0, cut), slice(cut, None)):
        if counts[some]:
            total.add_all(rows[some], counts[some], work)
    assert number(total) == true_sum(given_updates, SIZE)
    assert all(
        abs(limb).max() <= bound for limb, bound in zip(total.limbs, total.bounds, strict=True)
    )


@given(updates, st.data())
def test_a_tree_of_sums_is_the_flat_sum(given_updates: Updates, data: st.DataObject) -> None:
    """Leaves of any size, some empty; each inner sum adds up two others."""
    groups = data.draw(st.integers(1, 5))
    owner = [data.draw(st.integers(0, groups - 1)) for _ in given_updates]
    nodes = [
        summed(
            [each for each, mine in zip(given_updates, owner, strict=True) if mine == group], SIZE
        )
        for group in range(groups)
    ]
    work = Workspace(SIZE)
    while len(nodes) > 1:
        place = data.draw(st.integers(0, len(nodes) - 2))
        nodes[place].merge(nodes.pop(place + 1), work)
    flat = summed(given_updates, SIZE)
    assert canonical(nodes[0]) == canonical(flat)
    assert nodes[0].total().tobytes() == flat.total().tobytes()


@given(updates, st.integers(0, 12))
def test_a_sum_that_is_sent_as_integers_goes_on_elsewhere(given_updates: Updates, cut: int) -> None:
    unit, digits = summed(given_updates[:cut], SIZE).integers()
    received = BlockSum(SIZE)
    received.unit, received.limbs = unit, [digit.copy() for digit in digits]
    received.bounds = [1 << 40 for _ in digits]
    work = Workspace(SIZE)
    for values, weight in given_updates[cut:]:
        received.add(values, weight, work)
    assert canonical(received) == canonical(summed(given_updates, SIZE))


@given(updates)
def test_the_canonical_form_is_the_number_in_as_few_digits_as_it_takes(
    given_updates: Updates,
) -> None:
    unit, digits = canonical(summed(given_updates, SIZE))
    assert number_of(unit, digits, SIZE) == true_sum(given_updates, SIZE)
    assert unit % 40 == 0
    assert all(0 <= digit < 1 << 40 for row in digits[:-1] for digit in row)
    assert set(digits[-1]) <= {0, -1}
    if len(digits) > 1:
        assert any(digits[0])
        assert digits[-2] != [sign % (1 << 40) for sign in digits[-1]]


@given(vectors, st.integers(1, LARGEST_WEIGHT), st.integers(1, LARGEST_WEIGHT))
def test_weights_add_up(vector: Float32s, first: int, second: int) -> None:
    apart = summed([(vector, first), (vector, second)], SIZE)
    assert canonical(apart) == canonical(summed([(vector, first + second)], SIZE))


@given(updates)
def test_what_is_added_and_taken_back_leaves_nothing(given_updates: Updates) -> None:
    back = [(-vector, weight) for vector, weight in given_updates]
    total = summed([*given_updates, *back], SIZE)
    assert canonical(total) == (0, [[0] * SIZE])
    assert not total.total().any()


@given(updates)
def test_a_value_does_not_depend_on_those_beside_it(given_updates: Updates) -> None:
    together = summed(given_updates, SIZE).total()
    for i in range(SIZE):
        alone = summed([(vector[i : i + 1], weight) for vector, weight in given_updates], 1)
        assert alone.total().tobytes() == together[i : i + 1].tobytes()


@given(updates)
def test_the_mean_lies_between_the_smallest_and_the_largest(given_updates: Updates) -> None:
    weight = sum(weight for _, weight in given_updates)
    mean = (summed(given_updates, SIZE).total() / float(weight)).astype(np.float32)
    stack = np.stack([vector for vector, _ in given_updates])
    assert (mean >= stack.min(0)).all()
    assert (mean <= stack.max(0)).all()


@settings(max_examples=200)
@given(vectors, st.integers(1, COHORT), st.booleans())
def test_a_full_cohort_of_the_largest_weights_overflows_nothing(
    vector: Float32s, told: int, alternate: bool
) -> None:
    """Sums that many devices made are doubled until they are of 2**17 updates, each of 2**40."""
    total, work = summed([(vector, LARGEST_WEIGHT)], SIZE, told), Workspace(SIZE)
    for _ in range(17):
        total.merge(total.with_limbs([limb.copy() for limb in total.limbs]), work)
    sign = -1 if alternate else 1
    for _ in range(3):
        total.add(sign * vector, LARGEST_WEIGHT, work)
    times = (1 << 17) + 3 * sign
    expected = [Fraction(value) * LARGEST_WEIGHT * times for value in vector.tolist()]
    assert number(total) == expected
    assert total.total().tolist() == [float(each) for each in expected]
