"""Drift and the split: laws that hold for any data."""

from __future__ import annotations

import itertools
import math
import random

from hypothesis import given
from hypothesis import strategies as st

from fl_client.datasets import drift
from fl_client.datasets.sample import Sample, digest
from fl_client.datasets.splits.held_out import is_held_out

LEAST = st.integers(5, 40)
COUNTS = st.lists(st.integers(0, 200), min_size=1, max_size=12)
NUMBERS = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=300)
PAIRS = st.integers(1, 12).flatmap(
    lambda size: st.tuples(
        *(st.lists(st.integers(0, 200), min_size=size, max_size=size).filter(any) for _ in "ab")
    )
)


@given(PAIRS)
def test_psi_is_never_negative_and_the_same_both_ways(pair: tuple[list[int], list[int]]) -> None:
    first, second = pair
    assert drift.psi(first, second) >= 0
    assert math.isclose(drift.psi(first, second), drift.psi(second, first), abs_tol=1e-12)


@given(COUNTS.filter(any), st.integers(1, 50))
def test_psi_of_equal_shares_is_nothing(counts: list[int], times: int) -> None:
    assert drift.psi(counts, counts) == 0
    assert math.isclose(drift.psi(counts, [times * each for each in counts]), 0, abs_tol=1e-9)


def test_psi_of_a_known_pair() -> None:
    told = drift.psi([50, 50], [80, 20])
    assert math.isclose(told, 0.3 * math.log(0.8 / 0.5) - 0.3 * math.log(0.2 / 0.5))
    assert told > drift.NOTEWORTHY


def test_what_chance_gives_is_rarely_exceeded() -> None:
    """The bound is a 95% quantile: about one draw in twenty lies above it."""
    chooser = random.Random(5)
    edges = [0.1 * place for place in range(1, 10)]

    def draw() -> list[int]:
        return drift.histogram([chooser.random() for _ in range(400)], edges)

    above = sum(drift.psi(draw(), draw()) > drift.psi_by_chance(10, 400, 400) for _ in range(400))
    assert 5 <= above <= 40


@given(NUMBERS, LEAST)
def test_every_part_of_the_reference_holds_the_minimum(values: list[float], least: int) -> None:
    edges = drift.quantile_edges(values, least)
    counts = drift.histogram(values, edges)
    assert sum(counts) == len(values)
    assert all(first < second for first, second in itertools.pairwise(edges))
    around = edges[0] == min(values) and counts[1] == len(values)
    assert around or all(count >= least for count in counts)


@given(COUNTS, LEAST)
def test_merged_neighbours_hold_the_minimum_and_lose_nobody(counts: list[int], least: int) -> None:
    runs = drift.merged(counts, least)
    assert all(run.count >= least for run in runs)
    assert all(run.count == sum(counts[run.first : run.end]) for run in runs)
    if sum(counts) >= least:
        assert [*itertools.chain(*(range(run.first, run.end) for run in runs))] == [
            *range(len(counts))
        ]
    else:
        assert runs == []


@given(COUNTS, LEAST)
def test_no_count_below_the_minimum_can_be_worked_out(counts: list[int], least: int) -> None:
    told, others = drift.pooled(counts, least)
    assert all(told[number] == counts[number] >= least for number in told)
    assert others == 0 or others >= least
    # what is missing from the total is nothing, or everything
    left = sum(counts) - sum(told.values()) - others
    assert left == 0 or (not told and not others and left < least)


@given(COUNTS, LEAST, st.data())
def test_one_more_example_shows_as_the_minimum_or_not_at_all(
    counts: list[int], least: int, data: st.DataObject
) -> None:
    place = data.draw(st.integers(0, len(counts) - 1))
    grown = [count + (number == place) for number, count in enumerate(counts)]
    for each in (counts, grown):
        for count in [
            *drift.pooled(each, least)[0].values(),
            *(r.count for r in drift.merged(each, least)),
        ]:
            shown = drift.rounded(count, least)
            assert shown % least == 0
            assert shown >= least
            assert shown <= count


IDS = st.lists(st.binary(min_size=1, max_size=20), min_size=1, max_size=60, unique=True)


def sample(name: bytes, group: str = "") -> Sample:
    return Sample(digest("id", name), group, 0.0, [0.0])


@given(IDS, IDS, st.floats(0, 0.9), st.randoms(use_true_random=False))
def test_an_example_stays_on_its_side(
    names: list[bytes], more: list[bytes], share: float, chooser: random.Random
) -> None:
    before = {name: is_held_out("pump", sample(name), share) for name in names}
    grown = [*names, *more]
    chooser.shuffle(grown)
    after = {name: is_held_out("pump", sample(name), share) for name in grown}
    assert all(after[name] == before[name] for name in names)


@given(IDS, st.text(min_size=1, max_size=20), st.floats(0, 0.9))
def test_a_group_stays_together(names: list[bytes], group: str, share: float) -> None:
    assert len({is_held_out("pump", sample(name, group), share) for name in names}) == 1


@given(IDS, st.floats(0, 0.9), st.floats(0, 0.9))
def test_a_larger_share_lets_nobody_out(names: list[bytes], one: float, other: float) -> None:
    low, high = sorted((one, other))
    for name in names:
        assert is_held_out("t", sample(name), high) >= is_held_out("t", sample(name), low)


def test_the_share_is_about_what_was_asked_for() -> None:
    held = sum(is_held_out("pump", sample(b"%d" % number), 0.2) for number in range(5000))
    assert 850 < held < 1150
