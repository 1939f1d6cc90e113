"""Ranges of bytes, and the new file that is made of an earlier one and of what was fetched."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_server.aggregation.arithmetic.changes import Changes
from fl_server.rounds.model import Model
from fl_server.runs.patches import patches_to
from storage.transfer.byte_ranges import (
    MAX_SHARE,
    EarlierVersion,
    Range,
    are_valid,
    coalesced,
    length,
    open_earlier,
)

SIZE = 400
spans = st.lists(
    st.tuples(st.integers(0, SIZE - 1), st.integers(1, 40)).map(
        lambda pair: (pair[0], min(SIZE, sum(pair)))
    ),
    max_size=30,
)


def bytes_of(ranges: list[Range]) -> set[int]:
    return {place for start, end in ranges for place in range(start, end)}


@given(ranges=spans, gap=st.integers(0, 60), most=st.integers(1, 12))
def test_coalesced_ranges_cover_and_are_few_and_sound(
    ranges: list[Range], gap: int, most: int
) -> None:
    found = coalesced(ranges, gap=gap, most=most)
    assert bytes_of(found) >= bytes_of(ranges)
    assert len(found) <= most
    assert are_valid(found, SIZE)
    assert length(found) == len(bytes_of(found))
    assert all(after[0] - before[1] > gap for before, after in pairwise(found))
    assert coalesced(found, gap=gap, most=most) == found


@given(ranges=spans)
def test_without_gaps_and_bounds_nothing_more_than_asked_is_covered(ranges: list[Range]) -> None:
    assert bytes_of(coalesced(ranges)) == bytes_of(ranges)


@given(ranges=spans, most=st.integers(1, 12))
def test_the_bound_takes_in_the_shortest_gaps(ranges: list[Range], most: int) -> None:
    exact, found = coalesced(ranges), coalesced(ranges, most=most)
    kept = [gap for gap in gaps(exact) if gap in gaps(found)]
    taken_in = [gap for gap in gaps(exact) if gap not in gaps(found)]
    assert not taken_in or max(size(gap) for gap in taken_in) <= min(map(size, kept), default=SIZE)


def gaps(ranges: list[Range]) -> list[Range]:
    return [(before[1], after[0]) for before, after in pairwise(ranges)]


def size(gap: Range) -> int:
    return gap[1] - gap[0]


def test_unsound_ranges_are_known() -> None:
    assert are_valid([], 10)
    assert are_valid([(0, 10)], 10)
    for bad in ([(0, 11)], [(-1, 2)], [(3, 3)], [(5, 4)], [(4, 6), (0, 2)], [(0, 5), (4, 6)]):
        assert not are_valid(bad, 10), bad


@st.composite
def histories(draw: st.DrawFn) -> list[bytes]:
    """A file's versions, each changed in a few places."""
    versions = [draw(st.binary(min_size=SIZE, max_size=SIZE))]
    for _ in range(draw(st.integers(1, 5))):
        data = bytearray(versions[-1])
        for start, end in draw(spans.map(lambda found: found[:4])):
            data[start:end] = draw(st.binary(min_size=end - start, max_size=end - start))
        versions.append(bytes(data))
    return versions


def differences(old: bytes, new: bytes) -> list[Range]:
    return coalesced((place, place + 1) for place in range(SIZE) if old[place] != new[place])


def patched(path: Path, changed: list[Range], new: bytes, cuts: list[int]) -> tuple[bytes, int]:
    """Make the new file; at every cut whoever makes it begins again where the bytes end."""
    made, fetched = b"", 0
    for stop in [*sorted(cuts), SIZE]:
        with open_earlier(EarlierVersion(path, changed), SIZE) as source:
            assert source is not None
            while len(made) < stop:
                for block in source.read_unchanged(len(made)):
                    made += block
                end = min(source.fetch_until(len(made)), max(stop, len(made)))
                fetched += end - len(made)
                made += new[len(made) : end]
    return made, fetched


@settings(deadline=None)
@given(versions=histories(), base=st.integers(0, 4), cuts=st.lists(st.integers(0, SIZE)))
def test_any_earlier_version_and_the_merged_ranges_give_the_new_one(
    versions: list[bytes], base: int, cuts: list[int]
) -> None:
    base = min(base, len(versions) - 2)
    steps = [differences(old, new) for old, new in pairwise(versions[base:])]
    changed = coalesced(each for step in steps for each in step)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "older"
        path.write_bytes(versions[base])
        made, fetched = patched(path, changed, versions[-1], cuts)
    assert made == versions[-1]
    assert fetched == length(changed)


@settings(deadline=None)
@given(versions=histories(), shorter=st.integers(0, SIZE - 1))
def test_an_earlier_file_that_is_cut_off_is_replaced_from_there_on(
    versions: list[bytes], shorter: int
) -> None:
    changed = differences(versions[0], versions[1])
    with TemporaryDirectory() as folder:
        path = Path(folder) / "older"
        path.write_bytes(versions[0][:shorter])
        made, fetched = patched(path, changed, versions[1], [])
    assert made == versions[1]
    assert fetched >= length(changed)


@st.composite
def floats(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """A vector and the next, changed in a few places, some by the sign of a zero alone."""
    grain = 1 << 12
    count = draw(st.integers(1, 6 * grain))
    old = np.zeros(count, np.float32)
    new = old.copy()
    for place in draw(st.lists(st.integers(0, count - 1), max_size=6)):
        new[place : place + draw(st.integers(1, 2 * grain))] = draw(st.sampled_from([-0.0, 1.0]))
    return old, new


@settings(deadline=None)
@given(pair=floats(), block=st.sampled_from([1 << 12, 1 << 13, 1 << 14]))
def test_what_an_aggregator_calls_unchanged_is_so_to_the_bit(
    pair: tuple[np.ndarray, np.ndarray], block: int
) -> None:
    old, new = pair
    header = b"h" * 24
    changes = Changes(header, header, old.nbytes)
    for start in range(0, old.size, block):
        changes.compare(old[start : start + block], new[start : start + block])
    before, after = header + old.tobytes(), header + new.tobytes()
    found = changes.found(len(after))
    differing = [place for place in range(len(after)) if before[place] != after[place]]
    if found is None:
        grains = {(place - 24) // (4 << 12) for place in differing}
        coarse = sum(min(4 << 12, old.nbytes - (4 << 12) * grain) for grain in grains)
        assert coarse > MAX_SHARE * old.nbytes
        return
    assert are_valid(found, len(after))
    assert set(differing) <= bytes_of(list(found))
    assert length(found) <= MAX_SHARE * len(after)
    made = bytearray(before)
    for start, end in found:
        made[start:end] = after[start:end]
    assert bytes(made) == after


MIB = 1 << 20
KIB_128 = 128 << 10
model_sizes = st.integers(0, 8).map(lambda mib: mib * MIB)


@given(
    size=model_sizes,
    steps=st.lists(
        st.none() | st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=4),
        max_size=7,
    ),
)
def test_an_order_has_at_most_four_patches_each_worth_it(
    size: int, steps: list[list[tuple[int, int]] | None]
) -> None:
    models = [Model(0, "k", f"{0:064x}", size)]
    for number, step in enumerate(steps, 1):
        changed = None
        if step is not None:
            ends = ((first * KIB_128, (first + count) * KIB_128) for first, count in step)
            changed = tuple(
                coalesced((min(start, size), min(end, size)) for start, end in ends if start < size)
            )
        models.append(Model(number, "k", f"{number:064x}", size, changed=changed))
    *earlier, model = models
    patches = patches_to(model, earlier[-4:])
    assert len(patches) <= 4
    assert not patches or size >= MIB
    for distance, patch in enumerate(patches, 1):
        assert patch.base_sha256 == models[-1 - distance].sha256
        assert are_valid(patch.changed, size)
        assert length(patch.changed) <= MAX_SHARE * size
        since = [each for later in models[-distance:] for each in later.changed or ()]
        assert bytes_blocks(patch.changed) >= bytes_blocks(since)


def bytes_blocks(ranges: list[Range]) -> set[int]:
    return {place for start, end in ranges for place in range(start // KIB_128, -(-end // KIB_128))}
