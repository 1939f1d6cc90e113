"""What clients keep: what is written is read again, in memory that does not grow."""

from __future__ import annotations

import errno
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from rengo.simulation.states import BoundedStates
from runtime.errors import RunNotCompleted
from storage.weights import Array

STATE = st.dictionaries(
    st.sampled_from(["c/0.weight", "c/0.bias", "steps"]),
    arrays_of.arrays(
        st.sampled_from([np.float32, np.int64, np.float64]),
        arrays_of.array_shapes(min_dims=0, max_dims=2, max_side=4),
    ),
    max_size=3,
)


def assert_same(found: object, wanted: dict[str, Array]) -> None:
    assert list(found) == list(wanted)  # type: ignore[call-overload]
    for name, array in wanted.items():
        kept = found[name]  # type: ignore[index]
        assert (kept.dtype, kept.shape) == (array.dtype, array.shape)
        assert kept.tobytes() == array.tobytes()


@given(st.lists(st.tuples(st.integers(0, 6), STATE), max_size=30), st.sampled_from([0, 64, 1000]))
@settings(deadline=None)
def test_a_store_is_as_a_dict(puts: list[tuple[int, dict[str, Array]]], memory_bytes: int):
    states, wanted = BoundedStates(memory_bytes), {}
    for client, state in puts:
        assert_same(states.get(client), wanted.get(client, {}))
        states.put(client, state)
        wanted[client] = state
    for client in range(8):
        assert_same(states.get(client), wanted.get(client, {}))
    assert list(states.clients()) == sorted(client for client, state in wanted.items() if state)
    states.close()


def test_a_place_is_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ends, write = [], os.pwrite

    def noted(file: int, data: memoryview, offset: int) -> int:
        ends.append(offset + len(data))
        return write(file, data, offset)

    monkeypatch.setattr(os, "pwrite", noted)
    states = BoundedStates(0, tmp_path)
    for number in range(50):
        states.put(number % 5, {"c": np.full(1000, number, np.float32)})
    assert len(ends) == 50
    assert max(ends) == 5 * 4000
    # the file has no name
    assert not list(tmp_path.iterdir())
    states.close()


def test_memory_does_not_grow_with_the_clients():
    states = BoundedStates(1 << 20)
    state = {"c": np.zeros(2500, np.float32)}
    grown = []
    tracemalloc.start()
    for client in range(6000):
        states.put(client, {"c": state["c"].copy()})
        if client in {1999, 5999}:
            grown.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    # 4,000 more clients with 10 kB each
    assert grown[1] - grown[0] < 4000 * 50
    assert grown[1] < 3 << 20
    assert np.array_equal(states.get(17)["c"], state["c"])
    states.close()


def test_clients_without_a_state_cost_nothing():
    states = BoundedStates(0)
    tracemalloc.start()
    for client in range(100_000):
        states.put(client, {})
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used < 10_000
    states.close()


def test_a_full_disk_ends_the_run_with_a_line(monkeypatch: pytest.MonkeyPatch):
    def full(*given: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    states = BoundedStates(0)
    with pytest.raises(RunNotCompleted, match="No space left on device; TMPDIR names another"):
        states.put(0, {"c": np.zeros(10, np.float32)})
    states.close()
