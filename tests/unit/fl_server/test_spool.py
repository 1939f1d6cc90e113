"""Spools and sums in files: bounded memory, whole values, nothing left on disk."""

from __future__ import annotations

import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from algorithms.base import BLOCK
from fl_server.aggregation.arithmetic.exact import Float32s, Workspace
from fl_server.aggregation.spool import BlockSums, MemoryBudget, Spool, blocks_of
from runtime.errors import Corrupt
from storage.updates.info import Section

SIZE = BLOCK + 1000


def vector(size: int = SIZE, seed: int = 0) -> Float32s:
    return np.random.default_rng(seed).normal(size=size).astype(np.float32)


def filled(budget: MemoryBudget, folder: Path, values: Float32s, step: int = 70_000) -> Spool:
    spool = Spool(len(values), budget, folder)
    for start in range(0, len(values), step):
        spool.append(values[start : start + step])
    return spool


def content(spool: Spool) -> Float32s:
    parts = []
    position = 0
    whole_spool = spool.parts([Section("update", spool.size)])["update"]
    for start, values in blocks_of(whole_spool):
        assert start == position
        parts.append(values.copy())
        position += len(values)
    whole: Float32s = np.concatenate(parts)
    return whole


@pytest.mark.parametrize("limit", [0, 1 << 30], ids=["file", "memory"])
def test_what_went_in_comes_out_as_often_as_it_is_read(limit: int, tmp_path: Path) -> None:
    values = vector()
    spool = filled(MemoryBudget(limit), tmp_path, values)
    assert np.array_equal(content(spool), values)
    assert np.array_equal(content(spool), values)
    spool.close()


@pytest.mark.parametrize("limit", [0, 1 << 30], ids=["file", "memory"])
def test_a_spool_keeps_a_copy(limit: int, tmp_path: Path) -> None:
    buffer = vector(100)
    spool = filled(MemoryBudget(limit), tmp_path, buffer)
    before = buffer.copy()
    buffer[:] = 0
    assert np.array_equal(content(spool), before)
    spool.close()


@pytest.mark.parametrize("limit", [0, 1 << 30], ids=["file", "memory"])
def test_a_closed_spool_is_not_read(limit: int, tmp_path: Path) -> None:
    spool = filled(MemoryBudget(limit), tmp_path, vector(10))
    spool.close()
    spool.close()
    with pytest.raises(Corrupt, match="after it was closed"):
        content(spool)


def test_the_budget_is_shared_and_comes_back(tmp_path: Path) -> None:
    budget = MemoryBudget(4 * 250)
    first, second, third = (Spool(100, budget, tmp_path / "spools") for _ in range(3))
    assert (tmp_path / "spools").exists(), "the third had no room in memory"
    assert not budget.take(4 * 100)
    first.close()
    assert budget.take(4 * 100)
    budget.give(4 * 100)
    for spool in (first, second, third):
        spool.close()
    assert budget.take(4 * 250)
    assert not budget.take(1)


def test_the_budget_holds_under_many_threads() -> None:
    budget = MemoryBudget(1000)
    over: list[int] = []
    held = 0
    lock = threading.Lock()

    def work() -> None:
        nonlocal held
        for _ in range(500):
            if budget.take(300):
                with lock:
                    held += 300
                    if held > 1000:
                        over.append(held)
                with lock:
                    held -= 300
                budget.give(300)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not over
    assert budget.take(1000)


def add(sums: BlockSums, values: Float32s, weight: int) -> None:
    work = Workspace(BLOCK)
    for index in range(len(sums)):
        block = sums.read(index)
        block.add(values[BLOCK * index : BLOCK * (index + 1)], weight, work)
        sums.write(index, block)


def totals(sums: BlockSums) -> bytes:
    return np.concatenate([sums.read(index).total() for index in range(len(sums))]).tobytes()


def wide(seed: int) -> Float32s:
    """Return values that need three limbs in the first block, and one in the second."""
    values = vector(seed=seed)
    values[:BLOCK:1000] *= np.float32(1e-20)
    values[:BLOCK:1001] *= np.float32(1e12)
    return values


def test_spools_and_sums_have_no_name_on_disk(tmp_path: Path) -> None:
    spool = filled(MemoryBudget(0), tmp_path, vector(100))
    sums = BlockSums(1000, 1, 0, tmp_path)
    add(sums, vector(1000), 3)
    assert list(tmp_path.iterdir()) == []
    spool.close()
    sums.close()


@pytest.mark.parametrize("limbs_in_memory", [0, 1, 2])
def test_sums_have_the_same_bits_wherever_they_lie(limbs_in_memory: int, tmp_path: Path) -> None:
    memory = BlockSums(SIZE, 2, 10, tmp_path)
    sums = BlockSums(SIZE, 2, limbs_in_memory, tmp_path)
    assert totals(sums) == bytes(8 * SIZE)
    for values, weight in ((vector(), 600), (wide(1), 1 << 40), (vector(seed=2), 3)):
        for each in (memory, sums):
            add(each, values, weight)
        assert totals(sums) == totals(memory)
    assert len(memory.read(0).limbs) > 2
    memory.close()
    sums.close()


def test_a_block_that_needs_more_limbs_than_memory_has_room_for_is_on_disk(tmp_path: Path) -> None:
    sums = BlockSums(SIZE, 2, 2, tmp_path)
    add(sums, vector(), 600)
    assert sums._file is None
    add(sums, wide(1), 600)
    assert [bool(block.limbs) for block in sums._blocks] == [False, True]
    sums.close()


@pytest.mark.parametrize("limbs_in_memory", [0, 10])
def test_what_is_not_written_back_does_not_count(limbs_in_memory: int, tmp_path: Path) -> None:
    sums = BlockSums(SIZE, 2, limbs_in_memory, tmp_path)
    add(sums, vector(), 1)
    before, work = totals(sums), Workspace(BLOCK)
    if limbs_in_memory == 0:
        sums.read(0).add(vector()[:BLOCK], 1, work)
        assert totals(sums) == before
    block = sums.read(0)
    block.add(vector()[:BLOCK], 1, work)
    sums.write(0, block)
    assert totals(sums) != before
    sums.close()


def test_a_spool_that_was_not_filled_is_an_error_not_garbage(tmp_path: Path) -> None:
    spool = Spool(100, MemoryBudget(0), tmp_path)
    spool.append(vector(60))
    with pytest.raises(Corrupt, match="ends early"):
        content(spool)
    spool.close()


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """Within the block no file grows beyond ``size`` bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_an_error_at_once(tmp_path: Path) -> None:
    spool = Spool(SIZE, MemoryBudget(0), tmp_path)
    with disk_of(100_000), pytest.raises(OSError, match="large"):
        spool.append(vector())
    spool.close()
