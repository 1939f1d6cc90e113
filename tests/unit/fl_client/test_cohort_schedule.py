"""The steps of clients that train at once: each one's own batches, with little filling up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_client.engines.base import batches
from fl_client.engines.stacked.examples import StackedExamples
from fl_client.engines.stacked.schedule import groups, schedule_of

CLIENT = st.tuples(st.integers(1, 30), st.integers(1, 3), st.integers(0, 9))


def totals(clients: list[tuple[int, int, int]], size: int) -> list[int]:
    whole = [epochs * -(-count // size) for count, epochs, _ in clients]
    most = [steps for _, _, steps in clients]
    return [min(a, b) if b else a for a, b in zip(whole, most, strict=True)]


@given(st.lists(CLIENT, min_size=1, max_size=6), st.integers(1, 12))
def test_every_client_gets_its_own_batches_in_its_own_order(
    clients: list[tuple[int, int, int]], size: int
) -> None:
    ends = totals(clients, size)
    order = sorted(range(len(clients)), key=lambda each: -ends[each])
    data = [(np.arange(1.0, 1 + clients[each][0], dtype=np.float32),) * 2 for each in order]
    counts, sorted_ends = tuple(len(each) for each, _ in data), tuple(ends[each] for each in order)
    schedule = schedule_of(counts, sorted_ends, size)
    examples = StackedExamples(data, seeds=[10 + each for each in order])
    expected = {
        number: [
            chosen + 1.0
            for generator in [np.random.default_rng(10 + each)]
            for _ in range(3)
            for chosen in batches(generator, counts[number], size)
        ]
        for number, each in enumerate(order)
    }
    for number, step in enumerate(schedule.steps):
        inputs, targets = examples.batch(step)
        assert inputs.shape == (step.active, step.width)
        assert step.active == sum(end > number for end in sorted_ends)
        for client in range(step.active):
            own = inputs[client, : step.sizes[client]]
            np.testing.assert_array_equal(own, expected[client][number])
            np.testing.assert_array_equal(targets[client, : step.sizes[client]], own)
            share = np.broadcast_to(step.share, inputs.shape)[client]
            assert share[: step.sizes[client]] == pytest.approx(1 / step.sizes[client])
            assert not share[step.sizes[client] :].any()


def test_clients_of_one_size_waste_nothing() -> None:
    assert groups([54] * 10, [6] * 10, 10, 1e-6) == [list(range(10))]
    assert schedule_of((54,) * 10, (6,) * 10, 10).filled == 0


def test_clients_of_many_sizes_are_sorted_and_divided_where_that_pays() -> None:
    counts = [100, 1, 90, 2, 80, 3]
    cheap = groups(counts, [1] * 6, 100, 1e-9)
    assert cheap == [[0, 2, 4, 5, 3, 1]]
    # 324 examples of 600 would only fill up batches
    assert groups(counts, [1] * 6, 100, 1e-3) == [[0], [2], [4], [5], [3], [1]]
    moderate = groups(counts, [1] * 6, 100, 1e-6)
    assert moderate == [[0, 2, 4], [5, 3, 1]]


def test_what_fills_up_a_batch_is_zeros_whatever_others_have() -> None:
    data = [(np.full(size, np.nan, np.float32), np.zeros(size, np.int64)) for size in (5, 3)]
    schedule = schedule_of((5, 3), (1, 1), 8)
    inputs, _ = StackedExamples(data, [0, 1]).batch(schedule.steps[0])
    assert not inputs[1, 3:].any()
