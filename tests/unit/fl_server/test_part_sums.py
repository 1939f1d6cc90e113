"""Sums of updates of parts: against fractions, and the same bits in any order and grouping."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from algorithms.base import BLOCK
from fl_server.aggregation import sums
from fl_server.aggregation.arithmetic.exact import Float32s
from fl_server.aggregation.arithmetic.in_memory import MemorySums
from fl_server.aggregation.spool import MemoryBudget, Spool
from fl_server.aggregation.sums import LargeSum, RoundSums, SmallSum, UpdateParts
from runtime.errors import Corrupt
from storage.updates.info import Section
from storage.weights import Axis, Layout, Slices, TensorSpec, Window

LAYOUT = Layout((TensorSpec("a", (6, 4)), TensorSpec("b", (6,)), TensorSpec("c", (2, 6))))
PARTS = [
    None,
    *(
        Slices(
            LAYOUT,
            {
                "a": [Window(Axis(6), first, count), None],
                "b": [Window(Axis(6), first, count)],
                "c": [None, Window(Axis(6), first, count)],
            },
        )
        for first, count in ((0, 2), (0, 3), (4, 4))
    ),
]
WEIGHTS = [3, 1 << 40, 7, 5]


def values(number: int, slices: Slices | None, size: int) -> Float32s:
    count = size if slices is None else slices.part.size
    scale = 10.0 ** (3 * number - 4)
    return (np.random.default_rng(number).standard_normal(count) * scale).astype(np.float32)


def spool_of(vector: Float32s, folder: Path, *, in_file: bool) -> Spool:
    spool = Spool(len(vector), MemoryBudget(0 if in_file else 1 << 30), folder)
    for start in range(0, len(vector), BLOCK):
        spool.append(vector[start : start + BLOCK])
    return spool


def summed(
    folder: Path, order: tuple[int, ...], parts: list[Slices | None], *, in_file: bool = False
) -> RoundSums:
    found = RoundSums(len(order), folder, ("update",))
    whole = next(each.layout.size for each in parts if each is not None)
    for number in order:
        vector = values(number, parts[number], whole)
        spool = spool_of(vector, folder, in_file=in_file)
        sections = [Section("update", len(vector))]
        found.add(spool, UpdateParts(sections, slices=parts[number]), WEIGHTS[number])
    return found


def exact_mean(numbers: tuple[int, ...]) -> tuple[list[float], list[float]]:
    """Return the mean and the weight of each coordinate, each rounded once."""
    totals = [Fraction(0)] * LAYOUT.size
    weights = [0] * LAYOUT.size
    for number in numbers:
        slices = PARTS[number]
        vector = values(number, slices, LAYOUT.size).astype(float).tolist()
        places = range(LAYOUT.size) if slices is None else slices.take(np.arange(LAYOUT.size))
        for place, value in zip(places, vector, strict=True):
            totals[place] += Fraction(value) * WEIGHTS[number]
            weights[place] += WEIGHTS[number]
    pairs = list(zip(totals, weights, strict=True))
    return [float(t) / float(w) if w else 0.0 for t, w in pairs], [float(w) for w in weights]


@pytest.mark.parametrize("kind", [SmallSum, LargeSum])
@pytest.mark.parametrize("in_file", [False, True])
def test_each_coordinate_is_the_mean_of_those_that_have_it(
    kind: type, in_file: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sums, "MEMORY_SUMS_MAX", 1 << 24 if kind is SmallSum else 0)
    for chosen in ((1,), (1, 2), (0, 1, 2, 3), (2, 3)):
        wanted, weights = exact_mean(chosen)
        for order in itertools.permutations(chosen):
            found = summed(tmp_path, order, PARTS, in_file=in_file)
            assert found.mean("update", 0, LAYOUT.size).tolist() == wanted
            assert found.coverage("update", 0, LAYOUT.size).tolist() == weights
            found.close()
    assert 0.0 in exact_mean((1, 2))[1], "what nobody has"


def test_sums_in_memory_are_the_same_to_the_bit(tmp_path: Path) -> None:
    vectors = [values(number, slices, LAYOUT.size) for number, slices in enumerate(PARTS)]
    found = MemorySums(4, ("update",))
    found.add([{"update": vector} for vector in vectors], WEIGHTS, PARTS)
    files = summed(tmp_path, (3, 1, 0, 2), PARTS)
    for name in ("mean", "coverage"):
        own, theirs = (getattr(each, name)("update", 0, LAYOUT.size) for each in (found, files))
        assert own.tobytes() == theirs.tobytes()
    files.close()


def test_without_narrow_updates_it_is_the_plain_mean_to_the_bit(tmp_path: Path) -> None:
    vectors = [values(number, None, LAYOUT.size) for number in range(4)]
    plain, covered = RoundSums(4, tmp_path), RoundSums(4, tmp_path, ("update",))
    for found in (plain, covered):
        for vector, weight in zip(vectors, WEIGHTS, strict=True):
            spool = spool_of(vector, tmp_path, in_file=False)
            found.add(spool, UpdateParts([Section("update", len(vector))]), weight)
    mean = plain.mean("update", 0, LAYOUT.size)
    assert covered.mean("update", 0, LAYOUT.size).tobytes() == mean.tobytes()
    assert plain.coverage("update", 0, 3).tolist() == [0, 0, 0], "nothing is kept for it"
    plain.close()
    covered.close()


def test_a_part_of_several_blocks_whose_window_goes_round(tmp_path: Path) -> None:
    units = 600
    layout = Layout((TensorSpec("a", (units, 1000)), TensorSpec("b", (3, units))))
    window = Window(Axis(units), 250, 500)
    slices = Slices(layout, {"a": [window, None], "b": [None, window]})
    vector = values(1, slices, layout.size)
    assert len(vector) > 1.5 * BLOCK
    wanted = np.zeros(layout.size, np.float32)
    rows = (250 + np.arange(500)) % units
    wanted[: units * 1000].reshape(units, 1000)[rows] = vector[: 500 * 1000].reshape(500, 1000)
    wanted[units * 1000 :].reshape(3, units)[:, rows] = vector[500 * 1000 :].reshape(3, 500)
    for in_file in (False, True):
        found = RoundSums(1, tmp_path, ("update",))
        spool = spool_of(vector, tmp_path, in_file=in_file)
        found.add(spool, UpdateParts([Section("update", len(vector))], slices=slices), 3)
        for start in range(0, layout.size, BLOCK):
            count = min(BLOCK, layout.size - start)
            mean = found.mean("update", start, count)
            assert mean.tolist() == wanted[start : start + count].tolist()
        found.close()


def test_weights_of_nothing_are_an_error(tmp_path: Path) -> None:
    found = RoundSums(1, tmp_path, ("update",))
    vector = values(1, PARTS[1], LAYOUT.size)
    spool = spool_of(vector, tmp_path, in_file=False)
    found.add(spool, UpdateParts([Section("update", len(vector))], slices=PARTS[1]), 0)
    with pytest.raises(Corrupt, match="weights of all updates are 0"):
        found.mean("update", 0, LAYOUT.size)
    found.close()
