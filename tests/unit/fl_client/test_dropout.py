"""Dropout that does not depend on how many accelerators share a batch."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fl_client.models.dropout import DropoutMasks


@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    pieces=st.integers(1, 3),
    row=st.lists(st.integers(1, 3), max_size=2),
    step=st.integers(0, 3),
)
def test_the_masks_of_parts_are_the_mask_of_the_whole(
    sizes: list[int], pieces: int, row: list[int], step: int
) -> None:
    whole, parts = DropoutMasks(7), [DropoutMasks(7) for _ in sizes]
    for each in (whole, *parts):
        each.begin(step)
    for _ in range(pieces):
        expected = whole.mask(2, (sum(sizes), *row), 0.5)
        found, before = [], 0
        for masks, size in zip(parts, sizes, strict=True):
            masks.set_position(before, sum(sizes) - before - size)
            found.append(masks.mask(2, (size, *row), 0.5))
            before += size
        assert np.array_equal(np.concatenate(found), expected)
