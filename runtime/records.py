"""Frozen dataclasses that validate their fields, where pydantic takes too much memory.

The training process is one: pydantic would be half of what it holds beside numpy. Messages and
settings files are validated by pydantic.
"""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")
# finding them out takes longer than all checks
_HINTS: dict[type[Any], dict[str, Any]] = {}


class FieldError(ValueError):
    """A field is not what it may be.

    Attributes:
        field: its name, with the key within it.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


@dataclass(frozen=True)
class Bounds:
    """What a number lies within, or how long a text or a collection may be; stands in Annotated.

    Attributes:
        least: the number's lowest value; no number that is not finite lies within any bounds.
        above: what it must be larger than.
        most: its highest value.
        below: what it must be smaller than.
        length: the most characters or members.
    """

    least: float = -math.inf
    above: float = -math.inf
    most: float = math.inf
    below: float = math.inf
    length: int | None = None

    def require(self, value: Any, field: str) -> None:
        """Raise FieldError when ``value`` is outside."""
        if self.length is not None:
            if len(value) > self.length:
                raise FieldError(field, f"must be at most {self.length} long")
        elif not (self.least <= value <= self.most and self.above < value < self.below):
            raise FieldError(field, f"must be {self}")

    def __str__(self) -> str:
        said = {
            "at least": self.least,
            "above": self.above,
            "at most": self.most,
            "below": self.below,
        }
        return " and ".join(f"{word} {at:g}" for word, at in said.items() if math.isfinite(at)) or (
            "finite"
        )


def build(kind: type[T], given: Mapping[str, Any]) -> T:
    """Return a dataclass of the given fields, each checked, with its defaults for the others.

    Raises:
        FieldError: there is no such field, one is missing, or is not what it may be.
    """
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    for name in given:
        if name not in known:
            raise FieldError(str(name), f"there is no such field, only: {', '.join(known)}")
    for name, field in known.items():
        if name not in given and field.default is MISSING and field.default_factory is MISSING:
            raise FieldError(name, "is missing")
    hints = _hints(kind)
    return kind(**{name: _checked(hints[name], each, name) for name, each in given.items()})


def require_checked(record: Any) -> None:
    """Check a dataclass's own fields; for its ``__post_init__``. An integer serves as a float.

    Raises:
        FieldError: one is not what it may be.
    """
    hints = _hints(type(record))
    for field in fields(record):
        value = _checked(hints[field.name], getattr(record, field.name), field.name)
        object.__setattr__(record, field.name, value)


def _hints(kind: type[Any]) -> dict[str, Any]:
    if kind not in _HINTS:
        _HINTS[kind] = get_type_hints(kind, include_extras=True)
    return _HINTS[kind]


def _checked(hint: Any, value: Any, field: str) -> Any:
    """Return ``value`` as ``hint`` wants it."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        found = _checked(inner[0], value, field)
        for bounds in inner[1:]:
            bounds.require(found, field)
        return found
    if origin in (types.UnionType, Union):
        # of two kinds, one is None
        (other,) = (each for each in inner if each is not types.NoneType)
        return None if value is None else _checked(other, value, field)
    if origin is Literal:
        if value not in inner:
            raise FieldError(field, f"must be one of {', '.join(map(repr, inner))}")
        return value
    if origin is dict:
        _require(dict, value, field)
        return {
            _checked(inner[0], key, field): _checked(inner[1], each, f"{field}.{key}")
            for key, each in value.items()
        }
    if origin is list:
        _require(list, value, field)
        return [_checked(inner[0], each, f"{field}.{at}") for at, each in enumerate(value)]
    if origin is tuple:
        # a list where it is decoded
        _require_members(inner, value, field)
        kinds = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        pairs = enumerate(zip(kinds, value, strict=True))
        return tuple(_checked(kind, each, f"{field}.{at}") for at, (kind, each) in pairs)
    if hint is float and type(value) is int:
        return float(value)
    if hint is not Any:
        _require(hint, value, field)
    return value


def _require_members(inner: tuple[Any, ...], value: Any, field: str) -> None:
    is_list = isinstance(value, list | tuple)
    if inner[-1] is Ellipsis:
        if not is_list:
            raise FieldError(field, "must be a list")
    elif not is_list or len(value) != len(inner):
        raise FieldError(field, f"must be of {len(inner)} members")


def _require(kind: type[Any], value: Any, field: str) -> None:
    # a truth value is no number, though Python has it as one
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise FieldError(field, f"must be of type {kind.__name__}")
