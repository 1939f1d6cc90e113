"""What a version may hold: finite values, and constants that are infinite."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest

from runtime.errors import Corrupt
from storage.registry.registry import ModelRegistry
from storage.store.memory import MemoryStore
from storage.weights import (
    NotFinite,
    Vector,
    Weights,
    next_values,
    require_finite,
    require_same_constants,
    write_safetensors,
)
from tests.versions import KEY, PROJECT, model_file, stored

INF, NAN = math.inf, math.nan
MASK = [[0.0, -INF], [0.0, 0.0]]
LONG = [1.0] * 600_000


def check(**tensors: object) -> None:
    data = io.BytesIO()
    arrays = {name: np.array(values, np.float32) for name, values in tensors.items()}
    write_safetensors(Weights.from_arrays(arrays), data)
    data.seek(0)
    require_finite(data, "v")


@pytest.mark.parametrize(
    "tensors",
    [
        {"w": [1.0, -2.0]},
        {"w": [0.0], "mask": MASK},
        {"w": [3e38], "mask": [INF, INF]},
        {"w": LONG},
        {"empty": []},
    ],
)
def test_finite_values_and_infinite_constants_may_be(tensors: dict[str, object]) -> None:
    check(**tensors)


@pytest.mark.parametrize(
    ("tensors", "named"),
    [
        ({"a": [1.0], "w": [1.0, NAN]}, "'w'"),
        ({"a": [1.0], "w": [NAN, NAN]}, "'w'"),
        ({"a": [1.0], "w": [1.0, INF]}, "'w'"),
        ({"a": [1.0], "w": [-INF, INF]}, "'w'"),
        ({"w": [INF, 0.0], "b": [-INF]}, "'w'"),
        ({"w": [*LONG, -INF], "b": [1.0]}, "'w'"),
        ({"w": [-INF, *LONG], "b": [1.0]}, "'w'"),
        ({"w": [-INF, *[0.0] * 600_000, INF], "b": [1.0]}, "'w'"),
    ],
)
def test_any_other_value_is_refused_and_names_the_tensor(
    tensors: dict[str, object], named: str
) -> None:
    with pytest.raises(NotFinite, match=f"v: .*{named}"):
        check(**tensors)


def test_a_file_that_ends_early_is_damaged() -> None:
    with pytest.raises(Corrupt, match="ends within"):
        require_finite(io.BytesIO(model_file(b"", [1.0, 2.0])[:-5]), "v")


def vector(*values: float) -> Vector:
    return np.array(values, np.float32)


LAYOUT = Weights.from_arrays({"a": vector(1, 2), "b": vector(3)}).layout


@pytest.mark.parametrize("made", [0.0, -INF, INF, NAN])
def test_a_constant_stays_whatever_the_algorithm_makes_of_it(made: float) -> None:
    found = next_values(vector(1, -INF, 2), vector(5, made, 6), LAYOUT, 0)
    assert found.tolist() == [5, -INF, 6]


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize(("at", "named"), [(0, "a"), (1, "a"), (2, "b")])
def test_what_was_finite_must_stay_finite(bad: float, at: int, named: str) -> None:
    after = vector(5, 6, 7)
    after[at] = bad
    with pytest.raises(NotFinite, match=f"tensor '{named}' would not be finite"):
        next_values(vector(1, 2, 3), after, LAYOUT, 0)
    with pytest.raises(NotFinite, match=f"tensor '{named}'"):
        next_values(vector(1), vector(bad), LAYOUT, at)


def test_what_was_not_a_number_ends_the_run_too() -> None:
    with pytest.raises(NotFinite, match="'b'"):
        next_values(vector(1, -INF, NAN), vector(1, 2, 3), LAYOUT, 0)


def test_given_weights_may_be_infinite_only_where_the_model_is() -> None:
    model = Weights.from_arrays({"w": vector(1, 2), "mask": vector(0, -INF)})
    require_same_constants(model.with_vector(vector(5, 6, 7, -INF)), model, "file")
    for at, bad, named in ((0, NAN, "w"), (1, INF, "w"), (2, -INF, "mask"), (3, INF, "mask")):
        values = vector(5, 6, 7, -INF)
        values[at] = bad
        with pytest.raises(NotFinite, match=f"file: tensor '{named}'"):
            require_same_constants(model.with_vector(values), model, "file")


@pytest.mark.parametrize("bad", [NAN, INF])
def test_a_version_of_an_older_site_is_not_put_into_production(bad: float) -> None:
    store = MemoryStore()
    registry = ModelRegistry(store, PROJECT, KEY)
    registry.rebuild()
    good, broken, last = (
        registry.commit(stored(store, "r", number, body=model_file(b"", [1.0, value])))
        for number, value in enumerate((2.0, bad, 3.0))
    )
    registry.promote(good, "")
    with pytest.raises(NotFinite, match="r:1: tensor 'w'"):
        registry.promote(broken, "")
    with pytest.raises(NotFinite, match="r:1: tensor 'w'"):
        registry.candidate(broken, "")
    assert registry.production("digits") == registry.get("r", 0)
    registry.promote(last, "")
    assert registry.rollback("digits", "").name == "r:0"
