"""Parts of a model: against numpy's own indexing, whole and block by block."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import ConfigError
from storage.weights import Axis, Layout, Slices, TensorSpec, Window, slices


@st.composite
def axes(draw: st.DrawFn) -> Window | None:
    if draw(st.booleans()):
        return None
    axis = Axis(*(draw(st.integers(1, most)) for most in (5, 3, 3)))
    count = draw(st.integers(1, axis.units))
    return Window(axis, draw(st.integers(0, axis.units - 1)), count)


@st.composite
def parts(draw: st.DrawFn) -> Slices:
    tensors, windows = [], {}
    for number in range(draw(st.integers(1, 4))):
        kept = draw(st.lists(axes(), max_size=3))
        shape = tuple(draw(st.integers(0, 3)) if each is None else each.axis.size for each in kept)
        tensors.append(TensorSpec(f"t{number}", shape))
        windows[f"t{number}"] = kept
    return Slices(Layout(tuple(tensors)), windows)


def indices(window: Window) -> list[int]:
    """Return what a window keeps, unit by unit."""
    axis = window.axis
    units = [(window.first + number) % axis.units for number in range(window.count)]
    return [
        (group * axis.units + unit) * axis.each + offset
        for group in range(axis.groups)
        for unit in units
        for offset in range(axis.each)
    ]


def expected(part: Slices, kept: dict[str, list[Window | None]], vector: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    found = []
    for spec in part.layout.floats:
        array = vector[part.layout.offsets[spec.name]].reshape(spec.shape)
        rows = [
            range(side) if window is None else indices(window)
            for side, window in zip(spec.shape, kept[spec.name], strict=True)
        ]
        found.append(array[np.ix_(*rows)].reshape(-1) if rows else array.reshape(-1))
    return np.concatenate(found)


@settings(max_examples=60, deadline=None)
@given(part=parts())
def test_a_part_is_what_numpy_indexes(part: Slices) -> None:
    vector = np.arange(part.layout.size, dtype=np.float32)
    kept = {
        spec.name: list(part._windows.get(spec.name, [None] * len(spec.shape)))
        for spec in part.layout.floats
    }
    wanted = expected(part, kept, vector)
    assert part.take(vector).tolist() == wanted.tolist()
    assert part.part.size == wanted.size
    again = np.full_like(vector, -1)
    part.put(wanted, again)
    sources = part.sources(0, vector.size)
    assert again.tolist() == np.where(sources >= 0, vector, -1).tolist()
    assert [wanted[source] for source in sources if source >= 0] == vector[sources >= 0].tolist()


@pytest.mark.parametrize("block", [1, 3, 7, 1000])
def test_blocks_are_cuts_of_the_whole(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout((TensorSpec("a", (4, 6)), TensorSpec("none", (0,)), TensorSpec("b", (6,))))
    windows = {"a": [Window(Axis(4), 3, 2), Window(Axis(3, 2), 1, 2)]}
    part = Slices(layout, windows)
    vector = np.random.default_rng(0).standard_normal(layout.size)
    whole, sources = part.take(vector), part.sources(0, layout.size)
    monkeypatch.setattr(slices, "_BLOCK", block)
    part = Slices(layout, windows)
    assert part.take(vector).tolist() == whole.tolist()
    starts = range(0, layout.size, block)
    cut = [part.sources(at, min(block, layout.size - at)).tolist() for at in starts]
    assert list(itertools.chain(*cut)) == sources.tolist()


def test_parts_are_told_apart_by_what_they_keep() -> None:
    layout = Layout((TensorSpec("a", (4,)), TensorSpec("n", (), "I64")))
    digests = {
        Slices(layout, {"a": [window]}).digest
        for window in (Window(Axis(4), 0, 2), Window(Axis(4), 1, 2), Window(Axis(2, 2), 0, 1))
    }
    assert len(digests) == 3
    assert [spec.shape for spec in Slices(layout, {"a": [Window(Axis(4), 0, 2)]}).part.tensors] == [
        (2,),
        (),
    ]


def test_a_window_that_is_not_of_its_axis_is_refused() -> None:
    layout = Layout((TensorSpec("a", (4, 2)), TensorSpec("n", (4,), "I64")))
    for windows in (
        {"a": [Window(Axis(5), 0, 2), None]},
        {"a": [Window(Axis(4), 0, 2)]},
        {"n": [Window(Axis(4), 0, 2)]},
    ):
        with pytest.raises(ConfigError, match="has no part"):
            Slices(layout, windows)
    for first, count in ((4, 1), (-1, 1), (0, 5), (0, 0)):
        with pytest.raises(ConfigError, match="units from"):
            Window(Axis(4), first, count)
