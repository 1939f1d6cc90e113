"""Algorithms by name: those of this folder, whose files name them, and those of other packages.

Another package adds one by an entry point of the group ``rengo.algorithms``, whose name is the
algorithm's and whose value is its class.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.bounds import MAX_HYPER_PARAMETER
from runtime.errors import ConfigError
from runtime.records import FieldError, build

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from algorithms.base import Algorithm

GROUP = "rengo.algorithms"
_NOT_ALGORITHMS = frozenset({"base", "description", "registry"})


def names() -> list[str]:
    """Return the names of all algorithms, without importing any."""
    return sorted({*_own_names(), *_of_others()})


def load(name: str, settings: Mapping[str, Any] | None = None) -> Algorithm:
    """Return the algorithm ``name`` with ``settings`` over its defaults.

    Raises:
        ConfigError: no such algorithm, no such setting, or a value that it refuses; the text
            names the nearest right one and lists the choices.
    """
    algorithm = algorithm_class(name)
    given = dict(settings or {})
    allowed = [field.name for field in fields(algorithm)]
    for key in given:
        if key not in allowed:
            raise ConfigError(
                f"algorithm {name} has no setting {key!r}{_nearest(key, allowed)} "
                f"(it has: {', '.join(allowed) or 'none'})"
            )
    return _validated(algorithm, name, given)


@functools.cache
def algorithm_class(name: str) -> type[Algorithm]:
    """Return the class of the algorithm ``name``; raises ConfigError for a name not listed."""
    if name in _own_names():
        return _class_of(name)
    other = _of_others().get(name)
    if other is None:
        raise ConfigError(
            f"no algorithm {name!r}{_nearest(name, names())} (`rengo algorithms` lists them)"
        )
    return _class_of_other(other)


@functools.cache
def _own_names() -> frozenset[str]:
    found = (module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return frozenset(name for name in found if name not in _NOT_ALGORITHMS and name[0] != "_")


@functools.cache
def _of_others() -> dict[str, EntryPoint]:
    from importlib import metadata  # noqa: PLC0415  loads much that devices seldom need

    return {point.name: point for point in metadata.entry_points(group=GROUP)}


def _class_of(name: str) -> type[Algorithm]:
    from algorithms.base import Algorithm  # noqa: PLC0415  numpy loads only when one is used

    module = importlib.import_module(f"algorithms.{name}")
    own = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Algorithm)
        and value.__module__ == module.__name__
    ]
    if len(own) != 1:
        raise ConfigError(f"algorithms/{name}.py must define one Algorithm, it has {len(own)}")
    return own[0]


def _class_of_other(point: EntryPoint) -> type[Algorithm]:
    from algorithms.base import Algorithm  # noqa: PLC0415  numpy loads only when one is used

    try:
        found: Any = point.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"algorithm {point.name} ({point.value}): {error}") from error
    if not (isinstance(found, type) and issubclass(found, Algorithm)):
        raise ConfigError(f"algorithm {point.name} ({point.value}): it is no class of Algorithm")
    return found


def _nearest(word: str, choices: Iterable[str]) -> str:
    found = difflib.get_close_matches(word, list(choices), 1)
    return f"; did you mean {found[0]!r}?" if found else ""


def _validated(algorithm: type[Algorithm], name: str, given: dict[str, Any]) -> Algorithm:
    for key, value in given.items():
        if isinstance(value, int | float) and not abs(value) <= MAX_HYPER_PARAMETER:
            raise ConfigError(
                f"algorithm {name}, setting {key}: must be within ±{MAX_HYPER_PARAMETER:g} "
                f"(got {value!r})"
            )
    try:
        return build(algorithm, given)
    except FieldError as error:
        got = given.get(error.field)
        raise ConfigError(
            f"algorithm {name}, setting {error.field}: {error.reason} (got {got!r})"
        ) from error
