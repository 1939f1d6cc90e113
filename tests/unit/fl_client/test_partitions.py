"""Each way of dealing data out, by what it promises."""

from __future__ import annotations

import numpy as np
import pytest

from fl_client.datasets.splits import partitions
from runtime.errors import ConfigError

LABELS = np.random.default_rng(0).integers(0, 10, 1000)


def test_iid_parts_differ_by_at_most_one() -> None:
    assert sorted({part.size for part in partitions.iid(100, 7, 0)}) == [14, 15]


def test_shards_give_a_device_few_classes() -> None:
    labels = np.repeat(np.arange(10), 100)
    for part in partitions.shards(labels, 10, 2, 0):
        assert part.size == 100
        assert np.unique(labels[part]).size <= 2


def test_a_small_alpha_is_skewed_and_a_large_one_is_not() -> None:
    def largest_share(alpha: float) -> float:
        parts = partitions.dirichlet(LABELS, 5, alpha, 0)
        return float(np.mean([np.bincount(LABELS[p]).max() / p.size for p in parts]))

    assert largest_share(0.05) > 0.4
    assert largest_share(1000.0) < 0.2


def test_dirichlet_fills_small_parts_up() -> None:
    parts = partitions.dirichlet(LABELS, 20, 0.01, 0, min_size=30)
    assert min(part.size for part in parts) >= 30


def test_quantity_skews_sizes_and_no_labels() -> None:
    parts = partitions.quantity(LABELS.size, 5, 0.3, 1, min_size=20)
    sizes = [part.size for part in parts]
    assert max(sizes) > 4 * min(sizes)
    largest = LABELS[parts[int(np.argmax(sizes))]]
    assert np.bincount(largest, minlength=10).max() / largest.size < 0.2


def test_natural_deals_whole_owners_and_splits_one_only_where_devices_are_more() -> None:
    owners = np.repeat(["a", "b", "c"], [10, 20, 31])
    two = partitions.natural(owners, 2, 0)
    assert sorted(np.unique(owners[part]).size for part in two) == [1, 2]
    five = partitions.natural(owners, 5, 0)
    assert [np.unique(owners[part]).size for part in five] == [1] * 5
    assert sum(part.size for part in five) == 61


def test_by_id_gives_each_owner_its_own() -> None:
    found = partitions.by_id(["bo", "al", "bo", "cy"])
    assert {owner: part.tolist() for owner, part in found.items()} == {
        "al": [1],
        "bo": [0, 2],
        "cy": [3],
    }


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: partitions.iid(3, 4, 0), "3 examples are too few for 4 parts"),
        (lambda: partitions.iid(3, 0, 0), "parts must be 1 or more"),
        (lambda: partitions.dirichlet(LABELS, 5, 0.0, 0), "alpha must be above 0"),
        (lambda: partitions.dirichlet(LABELS, 5, 1.0, 0, min_size=201), "at least 201 each"),
        (lambda: partitions.quantity(10, 4, 1.0, 0, 3), "at least 3 each"),
        (lambda: partitions.quantity(10, 4, float("nan"), 0), "alpha must be above 0"),
        (lambda: partitions.natural([1, 2], 3, 0), "2 examples are too few for 3 parts"),
        (lambda: partitions.shards(LABELS, 5, 0, 0), "k must be 1 or more"),
        (lambda: partitions.shards(LABELS.reshape(2, -1), 5, 1, 0), "one-dimensional"),
    ],
)
def test_what_cannot_be_dealt_is_told(call: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        call()  # type: ignore[operator]
