"""How a data set is divided over devices, as one setting: ``dirichlet:0.1``, ``iid+turned``.

Imports no numpy: a waiting agent checks the setting too.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runtime.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Examples:
    """What is known of the examples that are divided.

    Attributes:
        labels: the class of each, one-dimensional.
        owners: whose each one is, where the data set says so.
        min_size: the least examples that a device gets, where the scheme leaves the choice.
    """

    labels: ArrayLike
    owners: Sequence[Any] | NDArray[Any] | None = None
    min_size: int = 1


@dataclass(frozen=True)
class Scheme:
    """A kind of partition (``partitions.py``) with its number, and how inputs are changed.

    Attributes:
        value: alpha of ``dirichlet`` and ``quantity``, the shards of a device; None for the rest.
        shift: how inputs differ from device to device (``shifts.py``); empty for not at all.
    """

    kind: str
    value: float | None = None
    shift: str = ""


@dataclass(frozen=True)
class _Number:
    """The number that a kind takes, where none is given."""

    default: float
    whole: bool = False


_KINDS = {
    "iid": None,
    "dirichlet": _Number(0.5),
    "shards": _Number(2, whole=True),
    "quantity": _Number(0.5),
    "natural": None,
}
KINDS = tuple(_KINDS)
SHIFTS = ("turned", "inverted", "tinted", "domains")


def parse(text: str) -> Scheme:
    """Return the scheme of a setting: ``KIND[:NUMBER][+SHIFT]``.

    >>> parse("dirichlet:0.1+turned")
    Scheme(kind='dirichlet', value=0.1, shift='turned')
    >>> parse("shards")
    Scheme(kind='shards', value=2, shift='')

    Raises:
        ConfigError: no such kind, shift or number, with the choices.
    """
    body, plus, shift = text.partition("+")
    name, colon, given = body.partition(":")
    if name not in _KINDS:
        raise ConfigError(f"partition {text!r}: {_choose(name, KINDS)}")
    if plus and shift not in SHIFTS:
        raise ConfigError(f"partition {text!r}: {_choose(shift, SHIFTS)}")
    number = _KINDS[name]
    if colon:
        return Scheme(name, _given(text, number, given), shift)
    return Scheme(name, None if number is None else number.default, shift)


def _given(text: str, number: _Number | None, given: str) -> float:
    if number is None:
        raise ConfigError(f"partition {text!r}: this kind takes no number")
    try:
        value = float(given)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0) or (number.whole and value != int(value)):
        wanted = "a whole number above 0" if number.whole else "a number above 0"
        raise ConfigError(f"partition {text!r}: {given!r} is not {wanted}")
    return value


def _choose(given: str, choices: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(given, choices, 1)
    meant = f"; did you mean {near[0]!r}?" if near else ""
    return f"{given!r} is none of {', '.join(choices)}{meant}"
