"""Every number that a type lets in, at its bounds and beyond: made from the types alone."""

from __future__ import annotations

import copy
import math
import types
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin

from annotated_types import BaseMetadata, Ge, Gt, Le, Lt
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

Path: TypeAlias = tuple[str | int, ...]
ANYWHERE: tuple[Any, ...] = (
    *(0, 1, -1, True, 0.0, -0.0, 0.5, math.nan, math.inf, -math.inf, 5e-324, -5e-324),
    *(1e308, -1e308, -1e300, 1e39, -1e39, 3.4e38),
    *(1 << 31, 1 << 40, (1 << 40) + 1, 1 << 53, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, -(1 << 63)),
)
_LEAVES: tuple[Any, ...] = (
    *("a", "a" * 64, "a" * 8, "x-amz-a", "a:1", "train", "", 1, 2, 3, 0, 0.5, b"", True),
)


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
    if origin is list:
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
