"""What a type lets in, at its bounds and beyond: a table and a search, made from the types alone.

The table has every number that a type holds with every value that is tried of it (``variations``).
The search (``documents``) finds whole documents, of numbers, texts, bytes and collections.
"""

from __future__ import annotations

import copy
import itertools
import math
import types
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, Union, get_args, get_origin

import pytest
from annotated_types import BaseMetadata, Ge, Gt, Le, Lt, MaxLen, MinLen
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

Path: TypeAlias = tuple[str | int, ...]
ANYWHERE: tuple[Any, ...] = (
    *(0, 1, -1, True, 0.0, -0.0, 0.5, math.nan, math.inf, -math.inf, 5e-324, -5e-324),
    *(1e308, -1e308, -1e300, 1e39, -1e39, 3.4e38),
    *(1 << 31, 1 << 40, (1 << 40) + 1, 1 << 53, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, -(1 << 63)),
)
# what a field of any type may be given, by somebody who means ill or by a program gone wrong
WILD: tuple[Any, ...] = (
    *(None, b"\xff", "", "x" * 3000, "\0", [], {}, [[[[1]]]], {"a": b"\xff"}, True, 1 << 63, 1e308),
)
_LEAVES: tuple[Any, ...] = (
    *("a", "a" * 64, "a" * 8, "x-amz-a", "a:1", "train", "", 1, 2, 3, 0, 0.5, b"", True),
)
# texts that terminals, files and languages treat in their own ways
_TEXTS: tuple[str, ...] = (
    *("-", "_", "0", "A", " ", "\n", "a\n", "\0", "\x1b[2J", "\u202e", "\U0001f600", "ü"),
    *("../x", "a/b", "%s{}", "a@0", "f" * 64, "0" * 64, "a1" * 32),
)
_LENGTHS = (8, 32, 33, 63, 64, 65, 128, 160, 161, 256, 300, 512, 513, 2000, 2001, 2048, 4096, 4097)
_LARGEST = 1 << 18
# what a search finds in `make soak`, and in `make test`
SEARCHED, SAMPLED = 20_000, 30
T = TypeVar("T")


def sample(hint: Any) -> Any:
    """Return the smallest plain value that a type lets in."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        if get_origin(inner[0]) in (types.UnionType, Union, Annotated):
            return sample(inner[0])
        origin, inner = get_origin(inner[0]), get_args(inner[0])
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return {name: sample(_hint(field)) for name, field in hint.model_fields.items()}
    if origin is Literal:
        return inner[0]
    if origin in (types.UnionType, Union):
        return sample(next(each for each in inner if each is not types.NoneType))
    if origin is list or inner[1:] == (...,):
        return [sample(inner[0])]
    if origin is tuple:
        return [sample(each) for each in inner]
    if origin is dict:
        return {} if inner[1] is Any else {sample(inner[0]): sample(inner[1])}
    return next(leaf for leaf in _LEAVES if _lets_in(hint, leaf))


def numbers(hint: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield where a type holds numbers, with the type of each."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated and get_origin(inner[0]) is not None:
        yield from numbers(inner[0], path)
    elif isinstance(hint, type) and issubclass(hint, BaseModel):
        for name, field in hint.model_fields.items():
            yield from numbers(_hint(field), (*path, name))
    elif origin in (types.UnionType, Union):
        for each in inner:
            yield from numbers(each, path)
    elif origin in (list, tuple):
        for at, each in enumerate(inner):
            if each is not ...:
                yield from numbers(each, (*path, at))
    elif origin is dict:
        yield from numbers(inner[1], (*path, sample(inner[0])))
    elif (inner[0] if origin is Annotated else hint) in (int, float):
        yield path, hint


def values(hint: Any) -> list[Any]:
    """Return what is tried of a number: everywhere the same, and its own bounds from both sides."""
    found = list(ANYWHERE)
    for each in _constraints(hint):
        for name in ("ge", "gt", "le", "lt"):
            bound = getattr(each, name, None)
            if isinstance(each, Ge | Gt | Le | Lt) and bound is not None:
                found += [bound, _next(bound, -1), _next(bound, 1)]
    return found


def replaced(document: Mapping[str, Any], path: Path, value: Any) -> dict[str, Any]:
    """Return a document with another value at a path."""
    made: Any = copy.deepcopy(dict(document))
    place = made
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    found: dict[str, Any] = made
    return found


def variations(model: type[BaseModel]) -> Iterator[tuple[Path, Any, dict[str, Any]]]:
    """Yield a model's documents, each with one number at or beyond a bound."""
    whole = sample(model)
    for path, hint in numbers(model):
        for value in values(hint):
            yield path, value, replaced(whole, path, value)


# --- as a search --------------------------------------------------------------------------------


_LONG = (pytest.mark.soak, pytest.mark.timeout(3600))
SIZES = [SAMPLED, pytest.param(SEARCHED, marks=_LONG)]


def searching(count: int) -> settings:
    """Return the settings of a search of so many: the same ones each time, and nothing is kept."""
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
    phases = (Phase.generate,)
    return settings(max_examples=count, phases=phases, database=None, suppress_health_check=slow)


def found_by(search: SearchStrategy[T], count: int) -> list[T]:
    """Return so many of what a search finds, fewer where there are no more."""
    found: list[T] = []

    @searching(count)
    @given(search)
    def find(each: T) -> None:
        found.append(each)

    find()
    return found


@st.composite
def documents(draw: DrawFn, model: type[BaseModel]) -> dict[str, Any]:
    """Return documents of a model, of which two thirds have a value or two that may be anything."""
    made: dict[str, Any] = draw(within(model))
    for _ in range(draw(st.integers(0, 2))):
        path = draw(st.sampled_from([("more",), *paths(made)]))
        made = replaced(made, path, draw(_strays(model)))
    return made


@cache
def within(hint: Any) -> SearchStrategy[Any]:
    """Return what a type lets in, as plain data, at its bounds more often than not."""
    if get_origin(hint) is Annotated and get_origin(get_args(hint)[0]) is not None:
        bare = get_args(hint)[0]
    else:
        bare = hint
    origin, inner = get_origin(bare), get_args(bare)
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return _models(hint)
    if origin is Literal:
        return st.sampled_from(inner)
    if origin in (types.UnionType, Union):
        return st.one_of(*(within(each) for each in inner))
    if origin is list or inner[1:] == (...,):
        return _lists(within(inner[0]), *_lengths(hint))
    if origin is tuple:
        return st.tuples(*(within(each) for each in inner)).map(list)
    if origin is dict:
        return _dicts(inner[0], within(inner[1]), *_lengths(hint))
    return _plain() if hint is Any else _leaves(hint)


def _models(model: type[BaseModel]) -> SearchStrategy[dict[str, Any]]:
    fields = {name: within(_hint(each)) for name, each in model.model_fields.items()}
    needed = [name for name, each in model.model_fields.items() if each.is_required()]
    optional = {name: each for name, each in fields.items() if name not in needed}
    return st.fixed_dictionaries({name: fields[name] for name in needed}, optional=optional)


def _lists(each: SearchStrategy[Any], least: int, most: int) -> SearchStrategy[list[Any]]:
    few = st.lists(each, min_size=least, max_size=min(most, 3))
    return st.one_of(few, few, few, each.map(lambda one: [one] * min(most, 500)))


def _dicts(
    key: Any, each: SearchStrategy[Any], least: int, most: int
) -> SearchStrategy[dict[Any, Any]]:
    few = st.dictionaries(within(key), each, min_size=least, max_size=min(most, 3))
    if not _lets_in(key, "0"):
        return few
    return st.one_of(few, few, few, each.map(lambda one: {str(n): one for n in range(most)}))


def _leaves(hint: Any) -> SearchStrategy[Any]:
    """Return what is tried of a number, a text or bytes, and anything between."""
    lengths = (*_LENGTHS, *(each for each in _lengths(hint) if each <= _LARGEST))
    tried = [None, *values(hint), *_LEAVES, *_TEXTS]
    tried += [each * length for length in lengths for each in ("a", "0", "ü", b"\xff")]
    found = [each for each in tried if _lets_in(hint, each)]
    # by place: hypothesis prints what it samples from, which may be long
    admitted = st.integers(0, len(found) - 1).map(lambda place: found[place])
    kind = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    between: dict[Any, SearchStrategy[Any]] = {
        int: st.integers(-(1 << 63), (1 << 63) - 1).map(lambda it: it >> (it & 63)),
        float: st.floats(allow_nan=False, allow_infinity=False),
        str: st.text(st.characters(codec="utf-8"), max_size=8),
        bytes: st.binary(max_size=8),
    }
    if kind not in between:
        return admitted
    others = st.tuples(between[kind], admitted).map(
        lambda pair: pair[0] if _lets_in(hint, pair[0]) else pair[1]
    )
    return st.one_of(admitted, others)


@cache
def _plain() -> SearchStrategy[Any]:
    """Return what settings hold."""
    scalars = st.none() | st.booleans() | within(int) | within(float) | within(str)
    return st.recursive(
        scalars,
        lambda each: st.lists(each, max_size=3) | st.dictionaries(within(str), each, max_size=3),
        max_leaves=6,
    )


@cache
def _strays(model: type[BaseModel]) -> SearchStrategy[Any]:
    """Return what a field may be given wrongly, the bounds of the model's numbers among it."""
    found = [*WILD, *(value for _, hint in numbers(model) for value in values(hint))]
    found += [*_TEXTS, *("a" * length for length in _LENGTHS)]
    return st.integers(0, len(found) - 1).map(lambda place: found[place])


def paths(value: Any, path: Path = ()) -> Iterator[Path]:
    """Yield where a document has a value, of a collection the first few."""
    if path:
        yield path
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, each in itertools.islice(items, 20):
        yield from paths(each, (*path, key))


def _lengths(hint: Any) -> tuple[int, int]:
    """Return the fewest and the most characters, bytes or members."""
    least, most = 0, 40
    for each in _constraints(hint):
        if isinstance(each, MinLen):
            least = each.min_length
        elif isinstance(each, MaxLen):
            most = each.max_length
    return least, most


# --- of types -----------------------------------------------------------------------------------


def _next(bound: float, direction: int) -> float:
    if isinstance(bound, int):
        return bound + direction
    return math.nextafter(bound, direction * math.inf)


def _constraints(hint: Any) -> Iterator[BaseMetadata]:
    for each in get_args(hint)[1:] if get_origin(hint) is Annotated else ():
        yield from each.metadata if isinstance(each, FieldInfo) else (each,)


def _hint(field: FieldInfo) -> Any:
    return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation


@cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint)


def _lets_in(hint: Any, leaf: Any) -> bool:
    try:
        _adapter(hint).validate_python(leaf, strict=True)
    except ValidationError:
        return False
    return True
