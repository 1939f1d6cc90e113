"""Dataclasses that check what they are made of."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest

from runtime.records import Bounds, FieldError, build, require_checked


@dataclass(frozen=True, kw_only=True)
class Record:
    name: str
    count: Annotated[int, Bounds(least=1, most=9)] = 1
    share: Annotated[float, Bounds(least=0, below=1)] = 0.0
    rate: Annotated[float, Bounds(above=0)] = 1.0
    any_float: float = 0.0
    whole: bool = False
    kind: Literal["a", "b"] = "a"
    note: Annotated[str, Bounds(length=3)] | None = None
    figures: Annotated[dict[Annotated[str, Bounds(length=2)], float], Bounds(length=2)] = field(
        default_factory=dict
    )
    rows: list[tuple[str, list[int]]] = field(default_factory=list)
    row: Annotated[tuple[float, ...], Bounds(length=3)] = ()
    rest: Any = None


def test_fields_that_may_be_are_taken_and_the_others_have_their_defaults() -> None:
    given = {"name": "n", "count": 9, "note": "abc", "figures": {"x": 1.5}, "rest": [{}]}
    found = build(Record, {**given, "rows": [["a", [1, 2]], ("b", [])]})
    assert (found.name, found.count, found.note, found.rest) == ("n", 9, "abc", [{}])
    assert (found.kind, found.whole, found.figures) == ("a", False, {"x": 1.5})
    assert found.rows == [("a", [1, 2]), ("b", [])]
    assert build(Record, {"name": "n", "row": [1, 2.5]}).row == (1.0, 2.5)


def test_an_integer_serves_as_a_float() -> None:
    found = build(Record, {"name": "n", "rate": 3, "figures": {"x": 1}})
    assert (type(found.rate), type(found.figures["x"])) == (float, float)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("name", 1, "name: must be of type str"),
        ("name", None, "name: must be of type str"),
        ("count", 0, "count: must be at least 1 and at most 9"),
        ("count", 10, "count"),
        ("count", 1.0, "count: must be of type int"),
        ("count", True, "count: must be of type int"),
        ("share", 1.0, "share: must be at least 0 and below 1"),
        ("share", -0.1, "share"),
        ("share", math.nan, "share"),
        ("rate", 0, "rate: must be above 0"),
        ("rate", math.inf, "rate"),
        ("rate", "1", "rate: must be of type float"),
        ("any_float", False, "any_float: must be of type float"),
        ("whole", 1, "whole: must be of type bool"),
        ("kind", "c", "kind: must be one of 'a', 'b'"),
        ("note", "abcd", "note: must be at most 3 long"),
        ("note", 5, "note: must be of type str"),
        ("figures", {"abc": 1.0}, r"figures: must be at most 2 long"),
        ("figures", {"a": "1"}, r"figures\.a: must be of type float"),
        ("figures", {"a": 1.0, "b": 1.0, "c": 1.0}, "figures: must be at most 2 long"),
        ("figures", [], "figures: must be of type dict"),
        ("rows", {}, "rows: must be of type list"),
        ("rows", [["a"]], r"rows\.0: must be of 2 members"),
        ("rows", ["ab"], r"rows\.0: must be of 2 members"),
        ("rows", [["a", [1, "2"]]], r"rows\.0\.1\.1: must be of type int"),
        ("row", "12", "row: must be a list"),
        ("row", [1, "2"], r"row\.1: must be of type float"),
        ("row", [1, 2, 3, 4], "row: must be at most 3 long"),
        ("nothing", 1, "nothing: there is no such field, only: name, count"),
    ],
)
def test_what_may_not_be_is_named(field: str, value: object, said: str) -> None:
    with pytest.raises(FieldError, match=said):
        build(Record, {"name": "n", field: value})


def test_what_is_missing_is_named() -> None:
    with pytest.raises(FieldError, match="name: is missing"):
        build(Record, {})


def test_a_number_without_an_end_is_within_no_bounds() -> None:
    for value in (math.inf, -math.inf, math.nan):
        with pytest.raises(FieldError, match="must be finite"):
            Bounds().require(value, "x")
    Bounds().require(1e300, "x")


@dataclass(frozen=True)
class Own:
    rate: Annotated[float, Bounds(above=0)] = 1.0

    def __post_init__(self) -> None:
        require_checked(self)


def test_a_record_may_check_itself() -> None:
    assert type(Own(2).rate) is float
    with pytest.raises(FieldError, match="rate: must be above 0"):
        Own(0.0)
