"""The exact sum: its arithmetic against whole-number oracles, and its limits."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from fl_server.aggregation.arithmetic.exact import (
    BLOCK,
    ExactSum,
    FixedPoint,
    Float32s,
    MemorySums,
    SumStore,
)
from fl_server.aggregation.spool import FileSums

FIXED = FixedPoint()


def values(*numbers: float) -> Float32s:
    return np.array(numbers, np.float32)


def summed(
    updates: list[tuple[Float32s, int]], fixed: FixedPoint = FIXED, store: SumStore | None = None
) -> ExactSum:
    size = len(updates[0][0])
    total = ExactSum(size, fixed, store or MemorySums(size))
    for vector, weight in updates:
        total.add_block(0, vector, weight)
        total.total_weight += weight
    return total


def test_the_mean_of_equal_updates_is_that_update() -> None:
    vector = values(0.5, -0.25, 3.0, 0.0, -0.0)
    mean = summed([(vector, 3), (vector, 5), (vector, 7)]).mean(0, 5)
    assert mean.tolist() == vector.tolist()


def test_the_weighted_mean_by_hand() -> None:
    mean = summed([(values(1.0, 0.0), 1), (values(0.0, 4.0), 3)]).mean(0, 2)
    assert mean.tolist() == [0.25, 3.0]


def test_a_value_below_the_scale_is_rounded_to_even() -> None:
    step = 2.0**-30
    mean = summed([(values(0.4 * step, 0.5 * step, 1.5 * step, 0.75 * step), 1)]).mean(0, 4)
    assert (mean / step).tolist() == [0.0, 0.0, 2.0, 1.0]


def test_denormal_values_do_no_harm() -> None:
    tiny = np.float32(1e-45)
    assert summed([(np.array([tiny, -tiny]), 1)]).mean(0, 2).tolist() == [0.0, 0.0]


def test_no_weight_raises() -> None:
    total = ExactSum(1, FIXED, MemorySums(1))
    with pytest.raises(ValueError, match="must be positive"):
        total.mean(0, 1)


def test_inputs_are_not_changed() -> None:
    vector = values(1.5, -2.5)
    before = vector.copy()
    summed([(vector, 4)])
    assert np.array_equal(vector, before)


@pytest.mark.parametrize(
    ("scale", "weight"), [(30, 22), (8, 4), (40, 20), (20, 40), (8, 40), (40, 4)]
)
@pytest.mark.parametrize("updates", [1, 3, 100])
def test_the_limits_leave_no_room_to_overflow(scale: int, weight: int, updates: int) -> None:
    """The worst that the limits let in, added in whole numbers of any size, is within int64."""
    fixed = FixedPoint(scale, weight)
    largest = fixed.value_limit
    most = fixed.weight_limit(updates)
    worst = updates * most * int(Fraction(largest) * 2**scale)
    assert worst <= 2**62
    if most:
        vector = np.full(3, largest, np.float32)
        total = summed([(vector, most)] * updates, fixed)
        assert total.mean(0, 3).tolist() == [largest] * 3
        total = summed([(-vector, most)] * updates, fixed)
        assert total.mean(0, 3).tolist() == [-largest] * 3


def test_the_weight_limit_is_shared_by_the_cohort() -> None:
    assert FixedPoint(30, 22).weight_limit(1) == 1 << 22
    assert FixedPoint(30, 22).weight_limit(1000) == (1 << 22) // 1000
    assert FixedPoint(30, 4).weight_limit(17) == 0


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_blocks_and_pieces_of_any_size_give_the_same_bits(kind: str, tmp_path: Path) -> None:
    size = 2 * BLOCK + 17
    source = np.random.default_rng(1)
    vectors = [source.normal(size=size).astype(np.float32) for _ in range(3)]
    whole = summed([(vector, 5) for vector in vectors])
    store = FileSums(size, tmp_path) if kind == "file" else MemorySums(size)
    pieces = ExactSum(size, FIXED, store)
    cuts = [0, 1, 1000, BLOCK - 1, BLOCK + 5, size]
    for vector in reversed(vectors):
        for start, end in pairwise(cuts):
            pieces.add_block(start, vector[start:end], 5)
        pieces.total_weight += 5
    for start in range(0, size, BLOCK):
        count = min(BLOCK, size - start)
        assert np.array_equal(whole.mean(start, count), pieces.mean(start, count))
    if isinstance(store, FileSums):
        store.close()


def test_zeros_of_either_sign_are_not_even_added() -> None:
    class Watched(MemorySums):
        """A store that remembers which blocks were touched."""

        def __init__(self, size: int) -> None:
            super().__init__(size)
            self.read_at: list[int] = []

        def read(self, start: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
            self.read_at.append(start)
            return super().read(start, count)

    size = 3 * BLOCK
    vector = np.zeros(size, np.float32)
    vector[:BLOCK] = -0.0
    vector[-1] = 0.5
    store = Watched(size)
    total = summed([(vector, 3)], store=store)
    assert store.read_at == [2 * BLOCK]
    assert total.mean(2 * BLOCK, BLOCK)[-1] == 0.5
    assert not total.mean(0, BLOCK).any()


def test_a_block_is_added_once_however_the_store_hands_it_out() -> None:
    class Copies(MemorySums):
        """A store whose blocks are copies, as those of a file are."""

        def read(self, start: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
            return super().read(start, count).copy()

    vector = values(1.0, 2.0)
    assert summed([(vector, 2)], store=Copies(2)).mean(0, 2).tolist() == [1.0, 2.0]
