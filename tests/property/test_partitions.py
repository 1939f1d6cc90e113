"""Parts are disjoint, hold everything, and depend on the seed alone."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fl_client.datasets.splits import partitions

labels = st.lists(st.integers(0, 5), min_size=40, max_size=120).map(np.array)
parts = st.integers(1, 8)
seeds = st.integers(0, 2**32)


def exhaustive(found: list[np.ndarray], count: int) -> bool:
    return sorted(np.concatenate(found).tolist()) == list(range(count))


@given(st.integers(8, 200), parts, seeds)
def test_iid(count: int, parts: int, seed: int) -> None:
    found = partitions.iid(count, parts, seed)
    assert len(found) == parts
    assert exhaustive(found, count)
    again = partitions.iid(count, parts, seed)
    assert all(np.array_equal(a, b) for a, b in zip(found, again, strict=True))


@given(labels, parts, st.floats(0.01, 100), seeds, st.integers(0, 5))
def test_dirichlet(labels: np.ndarray, parts: int, alpha: float, seed: int, min_size: int) -> None:
    found = partitions.dirichlet(labels, parts, alpha, seed, min_size)
    again = partitions.dirichlet(labels, parts, alpha, seed, min_size)
    assert len(found) == parts
    assert exhaustive(found, labels.size)
    assert min(part.size for part in found) >= min_size
    assert all(np.array_equal(a, b) for a, b in zip(found, again, strict=True))


@given(labels, parts, st.integers(1, 5), seeds)
def test_shards(labels: np.ndarray, parts: int, k: int, seed: int) -> None:
    found = partitions.shards(labels, parts, k, seed)
    assert len(found) == parts
    assert exhaustive(found, labels.size)
    assert all(part.size >= k for part in found)


@given(st.integers(40, 120), parts, st.floats(0.01, 100), seeds, st.integers(0, 5))
def test_quantity(count: int, parts: int, alpha: float, seed: int, min_size: int) -> None:
    found = partitions.quantity(count, parts, alpha, seed, min_size)
    again = partitions.quantity(count, parts, alpha, seed, min_size)
    assert len(found) == parts
    assert exhaustive(found, count)
    assert min(part.size for part in found) >= min_size
    assert all(np.array_equal(a, b) for a, b in zip(found, again, strict=True))


@given(labels, st.integers(1, 12), seeds)
def test_natural(owners: np.ndarray, parts: int, seed: int) -> None:
    found = partitions.natural(owners, parts, seed)
    again = partitions.natural(owners, parts, seed)
    assert all(np.array_equal(a, b) for a, b in zip(found, again, strict=True))
    assert len(found) == parts
    # what a device lacks of an owner is with others only where there are more devices than owners
    of = [set(owners[part].tolist()) for part in found]
    if parts <= np.unique(owners).size:
        assert exhaustive(found, owners.size)
        assert sum(map(len, of)) == np.unique(owners).size
    else:
        assert exhaustive(found, owners.size)
        assert all(len(own) <= 1 for own in of)


@given(labels)
def test_by_id(ids: np.ndarray) -> None:
    found = partitions.by_id(ids)
    assert exhaustive(list(found.values()), ids.size)
    assert all((ids[part] == owner).all() for owner, part in found.items())
